"""Evaluation of finished embeddings: pair verification, the files that hold pairs, figures.

Numpy in, numbers out; who computes the embeddings, and on how many ranks, is not known here.
"""
