"""Compression by content."""

import random

import pytest
import zstandard

from archive.codec import CodecError, compress, decompress

TEXT = b'{"role": "user", "content": "the same words again and again"}\n' * 200
NOISE = random.Random(1).randbytes(400_000)


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        pytest.param(b"", "raw", id="empty"),
        pytest.param(b"short", "raw", id="too short to shrink"),
        pytest.param(TEXT, "zstd", id="text"),
        pytest.param(TEXT * 100, "zstd", id="long text, judged by its sample"),
        pytest.param(NOISE[:1000], "raw", id="noise"),
        pytest.param(NOISE, "raw", id="long noise, judged by its sample"),
    ],
)
def test_zstd_is_used_where_it_pays_and_the_value_comes_back(value: bytes, codec: str) -> None:
    name, stored = compress(value, level=3, min_ratio=1.1)

    assert name == codec
    assert len(stored) <= len(value)
    assert decompress(name, bytes(stored), size_bytes=len(value)) == value


@pytest.mark.parametrize(
    ("min_ratio", "codec"),
    [
        pytest.param(1.9, "zstd", id="shrinks more than asked"),
        pytest.param(2.1, "raw", id="shrinks less than asked"),
    ],
)
def test_the_smallest_ratio_that_pays_is_a_setting(min_ratio: float, codec: str) -> None:
    half_noise = NOISE[:10_000] + bytes(10_000)  # shrinks to about half

    name, _ = compress(half_noise, level=3, min_ratio=min_ratio)

    assert name == codec


@pytest.mark.parametrize(
    ("codec", "stored"),
    [
        pytest.param("lz4", b"value", id="unknown codec"),
        pytest.param("raw", b"valu", id="raw, too short"),
        pytest.param("zstd", b"value", id="not zstd"),
        pytest.param("zstd", zstandard.compress(bytes(10_000_000)), id="grows beyond its size"),
        pytest.param("zstd", zstandard.compress(b"value")[:-1], id="truncated"),
        pytest.param("zstd", zstandard.compress(b"value") + b"x", id="something behind it"),
    ],
)
def test_what_is_not_the_value_is_refused(codec: str, stored: bytes) -> None:
    with pytest.raises(CodecError):
        decompress(codec, stored, size_bytes=5)
