"""Indices of labels for tests."""

import pyarrow as pa

from ffc_ds.data.identity_index import IdentityIndex


def index_labels(labels) -> IdentityIndex:
    """The index of a list or an array of labels."""
    return IdentityIndex.build(lambda: iter([pa.array(labels)]))


def all_labels(faces) -> list:
    return pa.chunked_array(list(faces.labels())).to_pylist()


def members(index):
    """{name: its images}, the slow way."""
    ends = zip(index.offsets[:-1], index.offsets[1:], strict=True)
    return {n.as_py(): index.images[a:b].tolist() for n, (a, b) in zip(index.names, ends, strict=True)}
