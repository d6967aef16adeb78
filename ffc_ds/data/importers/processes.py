"""Worker processes that end with their parent, even a killed one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from ffc_ds.errors import UserError

# Imported once, in the process that the workers are forked from.
FORKED_WITH = ["ffc_ds.data.importers.shards", "ffc_ds.data.importers.inspection"]


@contextmanager
def process_pool(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes (one for each core by default) that forgets what has not begun when it is left."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: it takes at least one process")
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORKED_WITH)
    pool = ProcessPoolExecutor(workers or cores, mp_context=context, initializer=_start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def results(futures: list[Future]) -> Iterator:
    """Results in the order in which they are ready."""
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: free some, or try fewer --workers"
        ) from error


def _start() -> None:
    os.environ["RANK"] = "1"  # what rank 0 says of the data, the parent has said
    # Ctrl-C goes to the whole group; what a worker has begun is finished and kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
