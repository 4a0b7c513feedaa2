"""Compression by content."""

import random
from array import array

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from archive.codec import BLOCK_NUMBERS, RAW, WIDTH_BYTES, CodecError, compress, decompress
from tests.support.tensors import bf16, fp32

TEXT = b'{"role": "user", "content": "the same words again and again"}\n' * 200
NOISE = random.Random(1).randbytes(400_000)
CYRILLIC = "Съешь же ещё этих мягких булок. ".encode() * 500


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        pytest.param(b"", "raw", id="empty"),
        pytest.param(b"short", "raw", id="too short to shrink"),
        pytest.param(TEXT, "zstd", id="text"),
        pytest.param(TEXT * 100, "zstd", id="long text, judged by its sample"),
        pytest.param(CYRILLIC, "zstd", id="text that is not ASCII"),
        pytest.param(array("h", range(1000)).tobytes(), "shuffle2-zstd", id="short numbers"),
        pytest.param(bf16(3_000), "shuffle2-zstd", id="bf16"),
        pytest.param(bf16(200_000), "shuffle2-zstd", id="long bf16, judged by its sample"),
        pytest.param(b"\x89header" + bf16(3_000), "shuffle2-zstd", id="bf16 at an odd offset"),
        pytest.param(fp32(3_000), "shuffle4-zstd", id="fp32"),
        pytest.param(fp32(100_000) + b"abc", "shuffle4-zstd", id="long fp32 and a rest"),
        pytest.param(NOISE[:1000], "raw", id="noise"),
        pytest.param(NOISE, "raw", id="long noise, judged by its sample"),
    ],
)
def test_the_codec_that_shrinks_it_most_is_used_and_the_value_comes_back(
    value: bytes, codec: str
) -> None:
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
        pytest.param("shuffle2-zstd", zstandard.compress(b"valu"), id="shuffled, too short"),
        pytest.param("shuffle4-zstd", b"value", id="shuffled, not zstd"),
    ],
)
def test_what_is_not_the_value_is_refused(codec: str, stored: bytes) -> None:
    with pytest.raises(CodecError):
        decompress(codec, stored, size_bytes=5)


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        pytest.param("bfloat16", "shuffle2-zstd", id="as PyTorch prints it in short"),
        pytest.param("torch.float16", "shuffle2-zstd", id="as PyTorch prints it"),
        pytest.param("BF16", "shuffle2-zstd", id="as safetensors has it"),
        pytest.param("float32", "shuffle4-zstd", id="another size"),
        pytest.param("float8_e4m3fn", "zstd", id="not in the table: by its sample"),
        pytest.param("", "zstd", id="not told: by its sample"),
    ],
)
def test_the_codec_of_a_known_dtype_needs_no_guess(dtype: str, codec: str) -> None:
    name, _ = compress(TEXT, dtype=dtype, level=3, min_ratio=1.1)

    assert name == codec


@pytest.mark.parametrize("codec", [RAW, *WIDTH_BYTES])
@given(value=st.binary(max_size=100))
def test_every_codec_gives_back_what_the_layout_says(codec: str, value: bytes) -> None:
    """The layout is written down once more here: what is stored must be readable for ever."""
    width = WIDTH_BYTES.get(codec, 1)
    whole = len(value) - len(value) % width
    planes = b"".join(value[byte:whole:width] for byte in range(width)) + value[whole:]
    stored = value if codec == RAW else zstandard.compress(planes)

    assert decompress(codec, stored, size_bytes=len(value)) == value


@pytest.mark.parametrize("count", [BLOCK_NUMBERS - 1, BLOCK_NUMBERS, BLOCK_NUMBERS + 1])
def test_numbers_come_back_on_both_sides_of_a_block(count: int) -> None:
    value = bf16(count) + b"x"

    name, stored = compress(value, dtype="bf16", level=3, min_ratio=1.1)

    assert name == "shuffle2-zstd"
    assert decompress(name, bytes(stored), size_bytes=len(value)) == value


def test_shuffled_numbers_take_a_quarter_less_than_zstd_alone() -> None:
    value = bf16(100_000)

    shuffled = compress(value, level=3, min_ratio=1.1)[1]

    assert len(shuffled) < 0.75 * len(value)
    assert len(zstandard.compress(value)) > 0.8 * len(value)
