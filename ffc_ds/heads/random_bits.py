"""Random bits as a function of a number and a key: the same on any number of ranks, and nothing to save."""

# those of splitmix64 (Steele and others, OOPSLA 2014), as signed 64-bit numbers
GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def random_bits(numbers, key):
    """63 bits, as a non-negative int64, for each of an int64 array of numpy or tensor of torch on any device, and of
    keys that broadcast against it."""
    bits = (numbers + key) * GOLDEN
    bits = (bits ^ (bits >> 30 & 0x3FFFFFFFF)) * FIRST
    bits = (bits ^ (bits >> 27 & 0x1FFFFFFFFF)) * SECOND
    return (bits ^ (bits >> 31 & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
