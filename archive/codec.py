"""Compression by content: zstd, for numbers after a byte shuffle, where it pays; else as it is.

    name            stored bytes
    raw             the value
    zstd            one zstd frame of the value
    shuffle2-zstd   one zstd frame of the shuffled value: first byte 0 of every 2-byte number, then
                    byte 1 of every number, then what is left over; so the exponents of bf16 and
                    fp16 stand together, which compress, apart from the mantissas, which do not
    shuffle4-zstd   the same with 4-byte numbers (fp32)

Names and layouts are for ever: what was stored by any release stays readable.
"""

import threading
from collections.abc import Iterator

import zstandard

RAW = "raw"
WIDTH_BYTES = {"zstd": 1, "shuffle2-zstd": 2, "shuffle4-zstd": 4}
"""Codec to the size of the numbers it takes apart; 1 = bytes as they are."""
CODEC_OF_DTYPE = {
    "bfloat16": "shuffle2-zstd",
    "bf16": "shuffle2-zstd",
    "float16": "shuffle2-zstd",
    "fp16": "shuffle2-zstd",
    "half": "shuffle2-zstd",
    "float32": "shuffle4-zstd",
    "fp32": "shuffle4-zstd",
    "float": "shuffle4-zstd",
}
SHUFFLED_LEVEL = 1
"""Higher zstd levels find nothing more in exponents: measured 1.44 at level 1 and at level 3."""
SAMPLE_PIECE_BYTES = 32 * 1024
SAMPLE_PIECES = 4
COUNTED_NUMBERS = 128
FEW_VALUES = 80
SMALL_BYTES = 128 * 1024
"""For larger values a compressor is made each time: it keeps as much memory as its largest took."""
BLOCK_NUMBERS = 64 * 1024
"""Shuffled in one step, which holds the interpreter's lock for well under a millisecond."""


_ALL_BYTES = bytes(range(256))
_of_thread = threading.local()


class CodecError(ValueError):
    """Stored bytes do not decompress to what they should, or their codec is unknown."""


def compress(value: bytes, *, dtype: str = "", level: int, min_ratio: float) -> tuple[str, bytes]:
    """`value` as (codec name, stored bytes); blocks, so run it in a thread.

    Raw where nothing shrinks it by `min_ratio`. With a known `dtype` (PyTorch's names, with or
    without `torch.`, or bf16, fp16, fp32) that one's codec is used, else, of those that may pay,
    the one that shrinks a sample most. Large values are judged by a sample of 128 KiB from four
    places, so that bytes that do not compress cost little. `level` is that of zstd without
    shuffle.
    """
    sample = _sample(value)
    known = CODEC_OF_DTYPE.get(dtype.lower().removeprefix("torch."))
    if known is not None:
        codecs = [known]
    elif sample.isascii():  # text: no numbers to take apart
        codecs = ["zstd"]
    elif _may_hold_numbers(sample, 4):  # looks at every other number of 2 bytes, too
        codecs = [codec for codec, width in WIDTH_BYTES.items() if _may_hold_numbers(sample, width)]
    else:
        codecs = ["zstd"]
    tried = {codec: compress_as(codec, sample, level) for codec in codecs}
    best = min(codecs, key=lambda codec: len(tried[codec]))
    if len(tried[best]) * min_ratio > len(sample):
        return RAW, value
    if sample is value:
        return best, tried[best]
    compressed = compress_as(best, value, level)
    if len(compressed) * min_ratio > len(value):
        return RAW, value
    return best, compressed


def compress_as(codec: str, value: bytes, level: int) -> bytes:
    """`value` by a codec of `WIDTH_BYTES`, whether it pays or not."""
    width = WIDTH_BYTES[codec]
    if width == 1:
        if len(value) > SMALL_BYTES:
            return zstandard.ZstdCompressor(level=level).compress(value)
        return _small_compressor(level).compress(value)
    compressor = zstandard.ZstdCompressor(level=SHUFFLED_LEVEL).compressobj(size=len(value))
    stored = []
    count = len(value) // width
    for byte in range(width):
        for first, end in _steps(count):
            stored.append(compressor.compress(value[first * width + byte : end * width : width]))
        # A block has one table of frequencies: exponents and mantissas must not share it.
        stored.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    stored.append(compressor.compress(value[count * width :]))
    stored.append(compressor.flush())
    return b"".join(stored)


def _small_compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's own, as none may be shared. To make one takes five times as long as 4 KiB."""
    if getattr(_of_thread, "level", None) != level:
        _of_thread.level, _of_thread.compressor = level, zstandard.ZstdCompressor(level=level)
    kept: zstandard.ZstdCompressor = _of_thread.compressor
    return kept


def decompress(codec: str, stored: bytes | memoryview, *, size_bytes: int) -> bytes | memoryview:
    """The value behind `stored`, exactly `size_bytes` long; never allocates more than twice that.

    Raises:
        CodecError: unknown codec, broken bytes, or another size.
    """
    if codec == RAW:
        value = stored
    elif codec in WIDTH_BYTES:
        value = _unshuffle(_decompress_zstd(stored, size_bytes), WIDTH_BYTES[codec])
    else:
        raise CodecError(f"codec {codec!r} is unknown to this release")
    if len(value) != size_bytes:
        raise CodecError(f"value is {len(value)} bytes instead of {size_bytes}")
    return value


def _decompress_zstd(stored: bytes | memoryview, size_bytes: int) -> bytes:
    try:
        # The frame's own size decides the allocation, so a damaged one is checked before.
        if zstandard.frame_content_size(stored) != size_bytes:
            raise CodecError(f"zstd frame does not hold {size_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd: {error}") from error


def _unshuffle(planes: bytes, width: int) -> bytes:
    if width == 1:
        return planes
    value = bytearray(planes)
    count = len(planes) // width
    for byte in range(width):
        for first, end in _steps(count):
            shuffled = planes[byte * count + first : byte * count + end]
            value[first * width + byte : end * width : width] = shuffled
    return bytes(value)


def _steps(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, BLOCK_NUMBERS):
        yield first, min(first + BLOCK_NUMBERS, count)


def _may_hold_numbers(sample: bytes, width: int) -> bool:
    """Whether the first or the last byte of each number, the exponent's, takes few values.

    Of 128 random bytes some 100 differ, of the exponents in tensors 10 to 60.
    """
    if width == 1:
        return True
    end = width * COUNTED_NUMBERS
    if _count_values(sample[width - 1 : end : width]) < FEW_VALUES:
        return True
    return _count_values(sample[:end:width]) < FEW_VALUES


def _count_values(sample: bytes) -> int:
    """How many bytes in it are different; a set would take five times as long."""
    return len(_ALL_BYTES) - len(_ALL_BYTES.translate(None, sample))


def _sample(value: bytes) -> bytes:
    if len(value) <= 2 * SAMPLE_PIECES * SAMPLE_PIECE_BYTES:
        return value
    # Pieces start where a number may: at multiples of the largest width.
    step = (len(value) - SAMPLE_PIECE_BYTES) // (SAMPLE_PIECES - 1) // 4 * 4
    return b"".join(
        value[start : start + SAMPLE_PIECE_BYTES] for start in range(0, step * SAMPLE_PIECES, step)
    )
