"""Compression by content: zstd where it pays, else the bytes as they are."""

import zstandard

RAW = "raw"
ZSTD = "zstd"
SAMPLE_PIECE_BYTES = 32 * 1024
SAMPLE_PIECES = 4


class CodecError(ValueError):
    """Stored bytes do not decompress to what they should, or their codec is unknown."""


def compress(
    value: bytes | bytearray, *, level: int, min_ratio: float
) -> tuple[str, bytes | bytearray]:
    """`value` as (codec name, stored bytes).

    Raw when zstd would not shrink it by `min_ratio` (half-precision attention caches stay near
    1.05). Large values are judged by a sample of 128 KiB from four places first, so that bytes
    that do not compress cost little.
    """
    # A compressor must not be shared between threads; making one costs microseconds.
    compressor = zstandard.ZstdCompressor(level=level)
    sample = _sample(value)
    if len(sample) < len(value) and len(compressor.compress(sample)) * min_ratio > len(sample):
        return RAW, value
    compressed = compressor.compress(value)
    if len(compressed) * min_ratio > len(value):
        return RAW, value
    return ZSTD, compressed


def decompress(codec: str, stored: bytes, *, size_bytes: int) -> bytes:
    """The value behind `stored`, exactly `size_bytes` long; never allocates more than that.

    Raises:
        CodecError: unknown codec, broken bytes, or another size.
    """
    if codec == RAW:
        value = stored
    elif codec == ZSTD:
        value = _decompress_zstd(stored, size_bytes)
    else:
        raise CodecError(f"codec {codec!r} is unknown to this release")
    if len(value) != size_bytes:
        raise CodecError(f"value is {len(value)} bytes instead of {size_bytes}")
    return value


def _decompress_zstd(stored: bytes, size_bytes: int) -> bytes:
    try:
        # The frame's own size decides the allocation, so a damaged one is checked before.
        if zstandard.frame_content_size(stored) != size_bytes:
            raise CodecError(f"zstd frame does not hold {size_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd: {error}") from error


def _sample(value: bytes | bytearray) -> bytes | bytearray:
    if len(value) <= 2 * SAMPLE_PIECES * SAMPLE_PIECE_BYTES:
        return value
    step = (len(value) - SAMPLE_PIECE_BYTES) // (SAMPLE_PIECES - 1)
    return b"".join(
        value[start : start + SAMPLE_PIECE_BYTES] for start in range(0, step * SAMPLE_PIECES, step)
    )
