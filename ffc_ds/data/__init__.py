"""From a dataset's name to the batches of one rank: everything random is a function of the seed and the step."""
