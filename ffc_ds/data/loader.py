"""The batches of one rank, decoded by worker processes in the order of the steps."""

import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ffc_ds.data.batch_checks import PREFETCHED, check_batch_size
from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.data.faces import Faces
from ffc_ds.data.reading import read_into
from ffc_ds.data.sampler import Sampler, StepPlan
from ffc_ds.errors import UserError
from ffc_ds.progress import say

PLANNED_IMAGES = 4096  # of global batches: planning some steps at once costs little more than planning one
PR_SET_PDEATHSIG = 1


class Batch(NamedTuple):
    """One micro-step of one rank: two views of r of the R rows of a global micro-batch.

    Attributes:
        images: uint8 tensor [2, r, S, S, 3], this rank's rows.
        labels: int64 array [2, R], the identities of the whole global micro-batch, in rank order; host data.
        flips: bool array [2, r]; host data, like all that follows.
        bytes: uint8 array [2, r, RANDOM_BYTES], see `augment.to_input`.
        replaced: says for each place whose image could not be read or decoded which one it was, and what stands there.
    """

    images: torch.Tensor
    labels: np.ndarray
    flips: np.ndarray
    bytes: np.ndarray
    replaced: list[str]


class StepLoader(Dataset):
    """The number of a micro-step -> this rank's `Batch`: a step's rows are cut into micro-batches, those into ranks.

    `shape` is that of the batches' images.
    """

    def __init__(
        self,
        faces: Faces,
        sampler: Sampler,
        image_size: int,
        rank: int,
        world_size: int,
        accumulation: int,
        max_megapixels: float = MAX_MEGAPIXELS,
    ):
        check_batch_size(sampler.batch_size, world_size, accumulation)
        self.faces, self.sampler = faces, sampler
        self.accumulation, self.max_megapixels = accumulation, max_megapixels
        self.micro_rows = sampler.rows // accumulation
        self.own_rows = self.micro_rows // world_size
        self.first_own_row = rank * self.own_rows
        self.shape = (2, self.own_rows, image_size, image_size, 3)
        self._plans = {}

    def __getitem__(self, micro_step: int) -> Batch:
        return self.decoded_into(torch.empty(self.shape, dtype=torch.uint8), micro_step)

    def decoded_into(self, images: torch.Tensor, micro_step: int) -> Batch:
        """The batch, with its images in the given tensor."""
        plan = self._plan(micro_step)
        start = micro_step % self.accumulation * self.micro_rows
        own_start = start + self.first_own_row
        own = slice(own_start, own_start + self.own_rows)
        replaced = read_into(images.numpy(), self.faces, plan.images[:, own], self.max_megapixels)
        labels = plan.identities[:, start : start + self.micro_rows]
        return Batch(images, labels.copy(), plan.flips[:, own].copy(), plan.bytes[:, own].copy(), replaced)

    def _plan(self, micro_step: int) -> StepPlan:
        if micro_step // self.accumulation not in self._plans:
            worker = get_worker_info()
            number = max(1, PLANNED_IMAGES // self.sampler.batch_size)
            ahead = micro_step + np.arange(number) * (worker.num_workers if worker else 1)
            steps = np.unique(ahead // self.accumulation)
            self._plans = dict(zip(steps.tolist(), self.sampler.plans(steps), strict=True))
        return self._plans[micro_step // self.accumulation]


def make_loader(
    faces: Faces,
    sampler: Sampler,
    image_size: int,
    rank: int,
    world_size: int,
    accumulation: int,
    start_step: int,
    end_step: int,
    workers: int,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> DataLoader:
    """Yield the `Batch`es of `rank` for the micro-steps of steps start_step..end_step - 1, in order.

    A worker process that dies is named, and all are started again, once; the batches are the same. Raises UserError
    when one dies after that, when the batch does not divide by the ranks and the accumulation and, naming the row, when
    an image is damaged and `faces` has no substitute for it.
    """
    steps = StepLoader(faces, sampler, image_size, rank, world_size, accumulation, max_megapixels)
    keys = range(start_step * accumulation, end_step * accumulation)
    return _SharedLoader(steps, keys, workers, rank) if workers else _OrderedLoader(steps, keys, 0)


class _OrderedLoader(DataLoader):
    """A DataLoader over the given keys, one item each, that passes a worker's UserError on as it was raised."""

    def __init__(self, dataset: Dataset, keys: range, workers: int):
        parallel = {}
        if workers:
            # Forked workers share the memory-mapped data; a spawned one would get a copy of every array.
            parallel = {"multiprocessing_context": "fork", "persistent_workers": True, "worker_init_fn": _start_worker}
            parallel["prefetch_factor"] = PREFETCHED
        super().__init__(
            _ErrorsAsItems(dataset),
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            # Otherwise making an iterator would advance torch's global generator, and a resumed run would differ.
            generator=torch.Generator(),
            **parallel,
        )

    def __iter__(self) -> Iterator[Any]:
        before = signal.getsignal(signal.SIGCHLD)
        items = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # What torch has set raises an error between any two lines when a worker dies; waiting for a batch finds
            # out in seconds, too.
            signal.signal(signal.SIGCHLD, before)
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item


class _SharedLoader(_OrderedLoader):
    """Batches whose images workers decode straight into memory that they share with this process.

    Otherwise the DataLoader would get fresh memory for each batch, to share it, and pass a file handle on: the pages
    alone cost as much as a third of the decoding.
    """

    def __init__(self, steps: StepLoader, keys: range, workers: int, rank: int):
        # While a batch is copied out, each other one that workers were asked for has a place of its own.
        number = workers * PREFETCHED + 1
        self.faces, self.rank, self.keys = steps.faces, rank, keys
        self.places = [torch.empty(steps.shape, dtype=torch.uint8).share_memory_() for _ in range(number)]
        super().__init__(_IntoPlaces(steps, self.places), _Rest(keys), workers)

    def __iter__(self) -> Iterator[Batch]:
        self.sampler.keys = self.keys
        try:
            yield from self._rest()
            return
        except RuntimeError as error:
            say(f"warning: {self._death(error)} The workers are started again, once")
        self._iterator._shutdown_workers()
        self._iterator = None
        try:
            yield from self._rest()
        except RuntimeError as error:
            raise UserError(
                f"{self._death(error)} It is the second time. If nobody killed it, the host ran out of memory: fewer "
                "data.workers take less."
            ) from error

    def _rest(self) -> Iterator[Batch]:
        for micro_step, batch in zip(self.sampler, super().__iter__(), strict=True):
            images = self.places[micro_step % len(self.places)]
            self.sampler.keys = self.sampler.keys[1:]
            yield batch._replace(images=_copied(images))

    def _death(self, error: RuntimeError) -> str:
        """Which worker has died, and of what. Raises what it is if that is no death."""
        if "DataLoader worker" not in str(error):
            raise error
        self.faces.check_copies()  # one that maps a file without its end dies of it, again and again
        dead = [f"{each.pid} ({_end(each.exitcode)})" for each in self._iterator._workers if not each.is_alive()]
        return f"a data worker of rank {self.rank} on {socket.gethostname()} has died: process {', '.join(dead)}."


class _Rest:
    """A sampler of the keys that are left."""

    def __init__(self, keys: range):
        self.keys = keys

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _IntoPlaces(Dataset):
    def __init__(self, steps: StepLoader, places: list[torch.Tensor]):
        self.steps, self.places = steps, places

    def __getitem__(self, micro_step: int) -> Batch:
        place = self.places[micro_step % len(self.places)]
        return self.steps.decoded_into(place, micro_step)._replace(images=None)


class _ErrorsAsItems(Dataset):
    """The DataLoader would bury the message of an exception in the worker's traceback, so it travels as an item."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: int) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _copied(images: torch.Tensor) -> torch.Tensor:
    """By NumPy, in one thread: torch's others would wait for the next batch on the cores that are to decode it."""
    copy = torch.empty(images.shape, dtype=images.dtype, pin_memory=torch.cuda.is_available())
    np.copyto(copy.numpy(), images.numpy())
    return copy


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach all processes, and the parent, which may have a step to finish, stops its
    # workers itself. If it is killed the kernel does, also where a worker stands still.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.excepthook = _report_unless_parent_left
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)


def _end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _report_unless_parent_left(kind: type, error: BaseException, trace: Any) -> None:
    """For the thread that hands tensors over: a parent that stops in the middle of it breaks the connection."""
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)
