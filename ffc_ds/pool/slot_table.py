"""A hash table from identity to slot, in numpy arrays: vectorised, compact, and every change can be taken back."""

import numpy as np

EMPTY, REMOVED = -1, -2


class SlotTable:
    """Open addressing with linear probing over the slots of a pool.

    The table holds slot numbers only; the identity of a slot is `identity_of_slot[slot]`, an array owned by the caller
    that must hold an identity before it is inserted and still hold it when it is removed.
    """

    def __init__(self, identity_of_slot: np.ndarray):
        self.identity_of_slot = identity_of_slot
        self._bits = max(4, int(4 * len(identity_of_slot) - 1).bit_length())
        self._table = np.full(1 << self._bits, EMPTY, np.int32)
        self._filled = 0  # buckets that are not EMPTY
        self._undo = []

    def find(self, identities: np.ndarray) -> np.ndarray:
        """Slot of each identity, int64 [n] -> int64 [n]; -1 where the identity is absent."""
        return self._probe(identities)[0]

    def insert(self, identities: np.ndarray, slots: np.ndarray) -> None:
        """Add distinct identities that are absent."""
        if self._filled + len(identities) > 3 * len(self._table) // 4:
            self._rebuild()
        bucket = self._first_bucket(identities)
        pending = np.arange(len(identities))
        while pending.size:
            here = bucket[pending]
            before = self._table[here]
            fits = before < 0
            rows, here, before = pending[fits], here[fits], before[fits]
            self._table[here] = slots[rows]
            won = self._table[here] == slots[rows]
            self._undo.append((here[won], before[won], self._filled))
            self._filled += int((before[won] == EMPTY).sum())
            placed = np.zeros(len(identities), bool)
            placed[rows[won]] = True
            pending = pending[~placed[pending]]
            bucket[pending] = (bucket[pending] + 1) & (len(self._table) - 1)

    def remove(self, identities: np.ndarray) -> None:
        """Drop identities that are present."""
        slots, bucket = self._probe(identities)
        self._undo.append((bucket, slots.astype(np.int32), self._filled))
        self._table[bucket] = REMOVED

    def mark(self) -> int:
        return len(self._undo)

    def undo(self, mark: int) -> None:
        """Take back every change since `mark`."""
        while len(self._undo) > mark:
            bucket, before, self._filled = self._undo.pop()
            if bucket is None:
                self._table = before
            else:
                self._table[bucket] = before

    def settle(self) -> None:
        """Changes so far can no longer be taken back."""
        self._undo.clear()

    def _first_bucket(self, identities: np.ndarray) -> np.ndarray:
        mixed = identities.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(64 - self._bits)).astype(np.int64)

    def _probe(self, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bucket = self._first_bucket(identities)
        slots = np.full(len(identities), -1, np.int64)
        pending = np.arange(len(identities))
        while pending.size:
            slot = self._table[bucket[pending]]
            match = (slot >= 0) & (self.identity_of_slot[np.maximum(slot, 0)] == identities[pending])
            slots[pending[match]] = slot[match]
            pending = pending[~match & (slot != EMPTY)]
            bucket[pending] = (bucket[pending] + 1) & (len(self._table) - 1)
        return slots, bucket

    def _rebuild(self) -> None:
        """Sweep out the REMOVED buckets, which make every search longer."""
        live = self._table[self._table >= 0].astype(np.int64)
        old = (None, self._table, self._filled)
        self._table, self._filled = np.full_like(self._table, EMPTY), 0
        mark = self.mark()
        self.insert(self.identity_of_slot[live], live)
        del self._undo[mark:]
        self._undo.append(old)
