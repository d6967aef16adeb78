"""Comparisons that anyone can repeat: the cost of the heads, the accuracy they reach, the speed of the data path."""
