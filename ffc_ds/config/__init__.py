"""The settings of a run: which there are, and their bounds."""
