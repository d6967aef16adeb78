import random
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffc_ds.pool.index import PoolIndex


class SlowPool:
    """The definition, one label after another."""

    def __init__(self, capacity, rows):
        self.capacity, self.rows = capacity, rows
        self.lru = OrderedDict()  # identity -> slot, oldest first
        self.position = [0] * capacity
        self.written = [0] * capacity

    def take_in(self, labels):
        slots, rows, hit, evicted = [], [], set(), 0
        for label in labels:
            if label in self.lru:
                slot = self.lru[label]
                self.lru.move_to_end(label)
                row = self.position[slot]
                hit.add(slot)
                self.written[slot] = min(self.written[slot] + 1, self.rows)
            else:
                if len(self.lru) < self.capacity:
                    slot = len(self.lru)
                else:
                    slot = self.lru.popitem(last=False)[1]
                    evicted += 1
                self.lru[label] = slot
                row = 0
                self.written[slot] = 1
            self.position[slot] = (row + 1) % self.rows
            slots.append(slot)
            rows.append(row)
        return slots, rows, sorted(hit), evicted


def assert_same(index, slow, labels):
    taken = index.take_in(np.array(labels, np.int64))
    slots, rows, hit, evicted = slow.take_in(labels)
    assert taken.slots.tolist() == slots
    assert taken.rows.tolist() == rows
    assert taken.hit.tolist() == hit
    assert taken.evicted == evicted
    assert index.order().tolist() == list(slow.lru.values())
    assert index.identity[index.order()].tolist() == list(slow.lru)
    assert index.position.tolist() == slow.position
    assert index.written.tolist() == slow.written
    final = {(slot, row): i for i, (slot, row) in enumerate(zip(slots, rows, strict=True))}
    assert sorted(np.flatnonzero(taken.last)) == sorted(final.values())


@settings(max_examples=150)
@given(
    capacity=st.integers(1, 12),
    rows=st.integers(1, 4),
    identities=st.integers(1, 40),
    batch=st.integers(1, 30),
    seed=st.integers(0, 10**6),
)
def test_follows_the_one_by_one_definition(capacity, rows, identities, batch, seed):
    rng = random.Random(seed)
    index, slow = PoolIndex(capacity, rows), SlowPool(capacity, rows)
    for step in range(12):
        labels = [rng.randrange(identities) ** 3 for _ in range(rng.randint(1, batch))]
        tentative = [rng.randrange(identities) ** 3 for _ in range(rng.randint(1, batch))]
        before = index.state()
        mark = index.mark()
        index.take_in(np.array(tentative, np.int64))
        index.undo(mark)
        for name, array in index.state().items():
            np.testing.assert_array_equal(array, before[name])
        assert_same(index, slow, labels)
        queries = np.arange(identities) ** 3
        assert index.find(queries).tolist() == [slow.lru.get(q, -1) for q in queries.tolist()]
        if step % 3:
            index.settle()


def test_long_run_with_heavy_eviction_and_reload():
    rng = np.random.default_rng(0)
    index, slow = PoolIndex(500, 3), SlowPool(500, 3)
    for step in range(150):
        assert_same(index, slow, rng.zipf(1.3, 120).clip(max=5000).tolist())
        index.settle()
        if step == 70:
            fresh = PoolIndex(500, 3)
            fresh.load(index.state())
            assert fresh.checksum() == index.checksum()
            index = fresh


def test_checksum_sees_order_and_rows():
    a, b = PoolIndex(8, 2), PoolIndex(8, 2)
    a.take_in(np.array([1, 2, 3]))
    b.take_in(np.array([1, 3, 2]))
    assert a.checksum() != b.checksum()


def bytes_of_a_long_run(identities, capacity):
    index, rng = PoolIndex(capacity, 3), np.random.default_rng(1)
    for _ in range(300):
        index.take_in(rng.integers(0, identities, 2000))
        index.settle()
    assert index.used == index.capacity
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays) + index._table._table.nbytes


def test_memory_follows_the_slots_and_not_the_identities():
    small, large = (bytes_of_a_long_run(identities, capacity=100_000) for identities in (10**6, 10**8))
    assert small == pytest.approx(large, rel=1e-3) and large <= 55 * 100_000
