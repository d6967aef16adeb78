"""The classes that a micro-batch is compared with where a step looks at a random share of them."""

import numpy as np
from torch import Tensor

from ffc_ds.distributed import to_device
from ffc_ds.heads.class_softmax import Columns
from ffc_ds.heads.sampled_rows import Sample
from ffc_ds.heads.softmax import Cells


def sampled_columns(weights: Tensor, start: int, sample: Sample, labels: np.ndarray) -> list[Columns]:
    """Columns of a micro-batch with these labels, int64 [R], on the rank that holds `weights` [n, any] of the classes
    from `start` on.

    Columns 0 is the sample, drawn on the device without the host waiting; columns 1 are the classes of the micro-batch
    that are not in it, known to the host.
    """
    device, end = weights.device, start + len(weights)
    rows, first = sample.rows(start, end, device)
    own = np.flatnonzero((labels >= start) & (labels < end))
    strata = sample.strata(labels[own])
    drawn = sample.members(strata) == labels[own]
    column = (strata[drawn] - first) % sample.wanted
    lacking, place = np.unique(labels[own[~drawn]] - start, return_inverse=True)
    return [
        Columns(weights, Cells(column, device, own[drawn]), rows - start),
        Columns(weights, Cells(place, device, own[~drawn]), to_device(lacking, device), host_rows=lacking),
    ]
