"""Synthetic tensors: normally distributed numbers with a scale for each channel."""

import random
from array import array

CHANNELS = 64


def fp32(count: int) -> bytes:
    """`count` numbers of 4 bytes, little endian; always the same."""
    random_ = random.Random(7)
    scales = [random_.lognormvariate(0, 1) for _ in range(CHANNELS)]
    return array("f", (random_.gauss(0, scales[i % CHANNELS]) for i in range(count))).tobytes()


def bf16(count: int) -> bytes:
    """The same in bfloat16: the upper halves."""
    numbers = fp32(count)
    halves = bytearray(2 * count)
    halves[0::2] = numbers[2::4]
    halves[1::2] = numbers[3::4]
    return bytes(halves)
