import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffc_ds.data.randomness import integers_below, mix, permute


@given(length=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(length, key):
    assert np.array_equal(np.sort(permute(np.arange(length), length, key)), np.arange(length))


@given(
    length=st.integers(1, 10**12), key=st.integers(0, 2**64 - 1), fractions=st.lists(st.floats(0, 1, exclude_max=True))
)
def test_permute_of_a_position_does_not_depend_on_the_others(length, key, fractions):
    positions = np.array([int(fraction * length) for fraction in fractions], dtype=np.int64)
    together = permute(positions, length, key)
    assert np.array_equal(together, [permute(np.array([p]), length, key)[0] for p in positions])
    assert len(np.unique(together)) == len(np.unique(positions))
    assert np.all((together >= 0) & (together < length))


def test_permute_takes_a_key_for_each_position():
    positions, keys = np.arange(12).reshape(3, 4), np.arange(100, 112, dtype=np.uint64).reshape(3, 4)
    expected = [permute(np.array([p]), 50, int(k))[0] for p, k in zip(positions.flat, keys.flat, strict=True)]
    assert np.array_equal(permute(positions, 50, keys), np.reshape(expected, (3, 4)))


@pytest.mark.parametrize("length", [5, 16, 100])
def test_permute_sends_every_position_everywhere_equally_often(length):
    keys = 4000
    images = permute(np.tile(np.arange(length), (keys, 1)), length, mix(np.arange(keys))[:, None])
    counts = np.stack([np.bincount(column, minlength=length) for column in images.T])
    chi_square = ((counts - keys / length) ** 2 / (keys / length)).sum() / (length - 1) ** 2
    assert 0.8 < chi_square < 1.25 if length > 5 else 0.3 < chi_square < 2


def test_permute_leaves_no_trace_of_the_order():
    length = 100_000
    images = permute(np.arange(length), length, 7)
    assert abs(np.corrcoef(np.arange(length), images)[0, 1]) < 0.015
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 0.015
    # Neighbours stay neighbours about twice among n, as in a random order.
    assert np.count_nonzero(np.abs(np.diff(images)) == 1) < 12


def test_permute_refuses_positions_out_of_range():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([5]), 5, 0)


def reference_mix(*integers):
    state, mask = 0, 2**64 - 1
    for integer in integers:
        state = ((state ^ integer & mask) + 0x9E3779B97F4A7C15) & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_mix_equals_arithmetic_on_python_integers(integers):
    assert int(mix(*integers)) == reference_mix(*integers)
    assert mix(*integers, np.arange(3)).tolist() == [reference_mix(*integers, i) for i in range(3)]


def test_every_bit_of_mix_is_fair_and_changes_with_every_argument():
    bits = np.unpackbits(mix(1, 2, np.arange(20_000)).view(np.uint8).reshape(-1, 8), axis=1)
    assert np.all(np.abs(bits.mean(axis=0) - 0.5) < 0.02)
    assert len({int(mix(*arguments)) for arguments in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (2,)]}) == 6


def test_integers_below_covers_an_array_of_bounds():
    bounds = np.array([1, 2, 3, 10])
    drawn = integers_below(mix(3, np.arange(10_000)[:, None], np.arange(4)), bounds)
    assert drawn.dtype == np.int64
    for column, bound in zip(drawn.T, bounds, strict=True):
        assert np.all(np.abs(np.bincount(column, minlength=bound) / 10_000 - 1 / bound) < 0.02)
