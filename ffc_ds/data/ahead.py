"""What is worked out ahead of its use, in order, by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

EACH = 2  # results of each thread that may wait
Item, Result = TypeVar("Item"), TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """`work` of each of the `items`, as a loop gets to it. What it raises is raised in its turn.

    For work that leaves Python's lock, such as reading and decoding images.
    """

    def __init__(self, work: Callable[[Item], Result], items: Iterable[Item], threads: int):
        self._work, self._items, self._threads = work, items, threads

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError("how many there will be is not known")
        return len(self._items)

    def __iter__(self) -> Iterator[Result]:
        begun, pool = deque(), ThreadPoolExecutor(self._threads)
        try:
            for item in self._items:
                begun.append(pool.submit(self._work, item))
                if len(begun) > EACH * self._threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
