"""A value in the file of a cache, as the archiver reads it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive import codec
from archive.lent_value import LentFile
from cache.tmpfs import PrivateFolder
from tests.support.evictions import evicted
from tests.support.tensors import bf16, fp32


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """As that of a cache."""
    private = PrivateFolder(tmp_path)
    yield private.path
    private.close()


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        pytest.param(fp32(150_001), "shuffle4-zstd", id="fp32"),
        pytest.param(bf16(300_004), "shuffle2-zstd", id="bf16"),
    ],
)
async def test_the_sample_of_numbers_gives_the_codec_of_the_whole(
    folder: Path, value: bytes, chosen: str
) -> None:
    file = folder / secrets.token_hex(16)
    file.write_bytes(value)
    file.chmod(0o400)

    sample = await LentFile(str(file), evicted(value=value)).sample()

    for content in (sample, value):
        name, _ = codec.compress(content, level=3, min_ratio=1.1)
        assert name == chosen
