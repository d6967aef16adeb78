"""A run: the loop, the engine, the gallery net, checkpoints, what is logged and what is left."""
