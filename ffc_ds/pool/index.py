"""Which identity holds which slot of the dynamic class pool, in exact LRU order (arXiv 2105.10375, section 3.3).

The index lives in host memory, is the same on every rank, and never looks at the device. A step costs what its labels
cost: neither the number of slots nor the number of identities enters (compaction is amortised over the touches that
made it needed). All state is numpy arrays, about 60 bytes a slot.

The LRU order is a log of touches: `_log[p]` is the slot touched at time p, and the entry counts only while
`_stamp[slot] == p`. A touch appends; the least recently used slots are the first entries that still count.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from ffc_ds.pool.slot_table import SlotTable


@dataclass(frozen=True)
class Taken:
    """Where a batch of gallery features goes. int64, global slot numbers, rows in batch order."""

    slots: np.ndarray  # [n] slot of each feature
    rows: np.ndarray  # [n] row of the slot that each feature is written to
    last: np.ndarray  # bool [n]: no later feature of the batch goes to the same row of the same slot
    hit: np.ndarray  # [h] distinct slots whose identity was already pooled when one of its features came
    evicted: int  # identities that left the pool


class PoolIndex:
    """Slots 0..capacity-1, each held by at most one identity with `rows` features.

    Identities are non-negative int64. Every change can be taken back: `mark()` before, `undo(mark)` after;
    `settle()` makes all changes final.
    """

    def __init__(self, capacity: int, rows: int):
        self.capacity, self.rows = capacity, rows
        self.used = 0  # slots 0..used-1 are held
        self.identity = np.full(capacity, -1, np.int64)
        self.position = np.zeros(capacity, np.int8)  # the row that the next feature of the slot goes to
        self.written = np.zeros(capacity, np.int8)  # rows that the present holder has written
        self.touched = np.full(capacity, -1, np.int32)  # the step of the last feature
        self._stamp = np.full(capacity, -1, np.int64)
        self._log = np.zeros(2 * capacity + 1024, np.int32)
        self._head = self._end = 0
        self._table = SlotTable(self.identity)
        self._undo = []

    def find(self, identities: np.ndarray) -> np.ndarray:
        """Slot of each identity, -1 where it is not pooled; the LRU order stays as it is."""
        return self._table.find(identities)

    def take_in(self, identities: np.ndarray, step: int = 0) -> Taken:
        """Take in the identities of a batch, int64 [n], one after another.

        An identity that is not pooled gets the next unused slot or, when there is none, that of the least recently used
        identity; its feature goes to row 0. One that is pooled gets its feature at the write position of its slot, and
        the slot counts as hit. Either way the position moves on (mod `rows`) and the identity is the most recent.
        """
        parts = [
            self._take_in_at_once(identities[start : start + self.capacity], step)
            for start in range(0, len(identities), self.capacity)
        ]
        slots, rows = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        hit = np.unique(np.concatenate([part[2] for part in parts]))
        target = (slots * self.rows + rows)[::-1]
        last = np.zeros(len(slots), bool)
        last[len(slots) - 1 - np.unique(target, return_index=True)[1]] = True
        return Taken(slots, rows, last, hit, sum(part[3] for part in parts))

    def _take_in_at_once(self, labels: np.ndarray, step: int):
        """`take_in` for at most `capacity` labels: then no identity of the batch can push out another one of it."""
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        counts = np.diff(starts, append=len(labels))
        inverse = np.empty(len(labels), np.int64)
        inverse[order] = np.repeat(np.arange(len(starts)), counts)
        occurrence = np.empty(len(labels), np.int64)
        occurrence[order] = np.arange(len(labels)) - np.repeat(starts, counts)
        identities, first, last = labels[order[starts]], order[starts], order[starts + counts - 1]

        slots = self._table.find(identities)
        hit, victims = self._hits_and_victims(slots, first)
        missed = np.flatnonzero(~hit)
        missed = missed[np.argsort(first[missed])]
        unused = np.arange(self.used, self.used + len(missed) - len(victims))
        slots[missed] = np.concatenate([unused, victims])

        self._remember(slots)
        self._table.remove(self.identity[victims])
        self.identity[slots] = identities
        self._table.insert(identities[missed], slots[missed])
        self.used += len(unused)

        start = np.where(hit, self.position[slots], 0)
        rows = (start[inverse] + occurrence) % self.rows
        self.position[slots] = (start + counts) % self.rows
        self.written[slots] = np.minimum(np.where(hit, self.written[slots], 0) + counts, self.rows)
        self.touched[slots] = step
        self._append(slots[np.argsort(last)])
        return slots[inverse], rows, slots[hit | (counts > 1)], len(victims)

    def _hits_and_victims(self, slots: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which identities of a batch still are pooled when their turn comes, and the slots that the others push out.

        slots, first: [u] of the distinct identities, their slots before the batch (-1: none) and first positions in it.
        Victims come in the order in which they leave. An identity is still there at its turn exactly if at most
        (unused slots + slots older than its own) distinct identities came before it that were new or older than it:
        the stack property of LRU.
        """
        hit = slots >= 0
        unused = self.capacity - self.used
        if np.count_nonzero(~hit) <= unused:
            return hit, np.empty(0, np.int64)
        oldest = self._oldest(len(slots))
        hit, saved = self._still_there_at_their_turn(slots, first, hit, oldest)
        pushed_out = np.flatnonzero(~saved)[: np.count_nonzero(~hit) - unused]
        self._undo.append(("head", self._head))
        self._head = oldest[pushed_out[-1]]
        return hit, self._log[oldest[pushed_out]].astype(np.int64)

    def _still_there_at_their_turn(self, slots, first, hit, oldest):
        """Which of the batch's identities, pooled before it, no earlier one of it has pushed out: `hit` [u], and
        which of the `oldest` slots they save."""
        saved = np.zeros(len(oldest), bool)
        stamps = self._stamp[slots]
        endangered = np.flatnonzero(hit & (stamps <= oldest[-1]))
        if endangered.size:
            endangered = endangered[np.argsort(first[endangered])]
            older = np.searchsorted(oldest, stamps[endangered])
            pushes = np.searchsorted(np.sort(first[slots < 0]), first[endangered]) + _smaller_before(older)
            stays = pushes <= self.capacity - self.used + older
            hit[endangered] = stays
            saved[older[stays]] = True
        return hit, saved

    def _oldest(self, n: int) -> np.ndarray:
        """Log times of the n least recently used slots (all, if fewer), oldest first."""
        width = 2 * n
        while True:
            end = min(self._head + width, self._end)
            times = np.arange(self._head, end)
            counts = np.flatnonzero(self._stamp[self._log[self._head : end]] == times)
            if len(counts) >= n or end == self._end:
                return times[counts[:n]]
            width *= 2

    def _append(self, slots: np.ndarray) -> None:
        end = self._end + len(slots)
        if end > len(self._log):
            self._log = np.concatenate([self._log[: self._end], np.zeros(len(slots), np.int32)])
        self._log[self._end : end] = slots
        self._stamp[slots] = np.arange(self._end, end)
        self._end = end

    def _remember(self, slots: np.ndarray) -> None:
        arrays = (self.identity, self.position, self.written, self.touched, self._stamp)
        before = [(array, array[slots]) for array in arrays]
        self._undo.append(("slots", slots, before, self.used, self._end))

    def mark(self) -> tuple[int, int]:
        """A point to return to."""
        return len(self._undo), self._table.mark()

    def undo(self, mark: tuple[int, int]) -> None:
        """Take back every change since `mark`, without a trace."""
        self._table.undo(mark[1])
        while len(self._undo) > mark[0]:
            kind, *what = self._undo.pop()
            if kind == "head":
                self._head = what[0]
                continue
            slots, before, self.used, self._end = what
            for array, values in before:
                array[slots] = values

    def settle(self) -> None:
        """All changes so far are final."""
        self._undo.clear()
        self._table.settle()
        if self._end > 2 * self.capacity:
            order = self._oldest(self.used)
            slots = self._log[order]
            self._log[: len(slots)] = slots
            self._stamp[slots] = np.arange(len(slots))
            self._head, self._end = 0, len(slots)

    def order(self) -> np.ndarray:
        """The held slots, least recently used first: int64 [used]."""
        return self._log[self._oldest(self.used)].astype(np.int64) if self.used else np.empty(0, np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on exactly from here; see `load`."""
        names = ("identity", "position", "written", "touched")
        return {name: getattr(self, name).copy() for name in names} | {"order": self.order()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` returned, from an index of the same capacity and rows."""
        for name in ("identity", "position", "written", "touched"):
            getattr(self, name)[:] = state[name]
        order = np.asarray(state["order"], np.int64)
        self.used, self._head, self._end = len(order), 0, 0
        self._stamp[:] = -1
        self._append(order)
        self._table = SlotTable(self.identity)
        self._table.insert(self.identity[order], order)
        self.settle()

    def checksum(self) -> int:
        """A number that is equal on all ranks as long as they agree about the pool."""
        digest = 0
        for array in self.state().values():
            digest = zlib.crc32(array.tobytes(), digest)
        return digest


def _smaller_before(values: np.ndarray, block: int = 1024) -> np.ndarray:
    """For each of [n] distinct values, how many values before it are smaller: int64 [n]."""
    counts = np.empty(len(values), np.int64)
    for start in range(0, len(values), block):
        end = min(start + block, len(values))
        before = np.arange(end) < np.arange(start, end)[:, None]
        counts[start:end] = ((values[:end] < values[start:end, None]) & before).sum(1)
    return counts
