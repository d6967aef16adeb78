"""Faces that are drawn: an unlimited, deterministic data set."""
