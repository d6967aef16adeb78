"""Random numbers as pure functions of counters: no state to save, the same on every rank, any order, any process."""

import numpy as np

FEISTEL_ROUNDS = 6


def mix(*integers) -> np.ndarray:
    """Hash integers (seed, stream, counter, ...) into uniform bits.

    Args:
        integers: Python ints or integer arrays that broadcast against each other; order matters.
    Returns:
        uint64 array of the broadcast shape. The mixing step is splitmix64's (Steele et al., OOPSLA 2014).
    """
    state = np.uint64(0)
    # numpy warns when scalars wrap around, which here is the point.
    with np.errstate(over="ignore"):
        for integer in integers:
            state = _scramble((state ^ _as_uint64(integer)) + np.uint64(0x9E3779B97F4A7C15))
    return state


def integers_below(bits: np.ndarray, bound) -> np.ndarray:
    """Turn uniform uint64 bits into int64 in [0, bound); the bias is at most bound / 2^64. `bound` may be an array."""
    return (bits % _as_uint64(bound)).astype(np.int64)


def permute(positions: np.ndarray, length: int, key) -> np.ndarray:
    """Apply the pseudo-random bijection of range(length) that `key` selects, in O(1) memory per position.

    A Feistel network over the next even number of bits, walked along its cycle until it is back in range
    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): at most 4 passes are expected.

    Args:
        positions: int64 of any shape, each in [0, length).
        length: size of the domain, at least 1.
        key: one integer, or uint64 of that shape for a permutation of each position's own.
    Returns:
        int64 of that shape, each in [0, length); distinct positions under one key have distinct images.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and not 0 <= positions.min() <= positions.max() < length:
        raise ValueError(f"positions must lie in [0, {length})")
    half = np.uint64(max(1, (int(length - 1).bit_length() + 1) // 2))
    keys = np.broadcast_to(_as_uint64(key), positions.shape).ravel()
    result = _feistel(positions.ravel().astype(np.uint64), keys, half)
    outside = np.flatnonzero(result >= length)
    while outside.size:
        result[outside] = _feistel(result[outside], keys[outside], half)
        outside = outside[result[outside] >= length]
    return result.astype(np.int64).reshape(positions.shape)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for round_number in range(FEISTEL_ROUNDS):
        left, right = right, left ^ (mix(keys, round_number, right) & mask)
    return (left << half) | right


def _scramble(state):
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _as_uint64(integer) -> np.ndarray:
    if isinstance(integer, int):
        return np.uint64(integer & 0xFFFFFFFFFFFFFFFF)
    return np.asarray(integer).astype(np.uint64)
