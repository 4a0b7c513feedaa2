"""How an upload is cut into parts."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, BinaryIO

import pytest

from archive.s3_multipart import PART_BYTES, TAIL_BYTES, upload


class Uploads:
    """An S3 client that notes the bytes of each request."""

    def __init__(self) -> None:
        self.puts: list[bytes] = []
        self.parts: dict[int, bytes] = {}
        self.completed: list[int] = []

    async def ask(self, request: Callable[[Any], Awaitable[Any]]) -> Any:
        return await request(self)

    async def put_object(self, *, Body: BinaryIO, **_: str) -> None:
        self.puts.append(Body.read())

    async def create_multipart_upload(self, **_: str) -> dict[str, str]:
        return {"UploadId": "u"}

    async def upload_part(self, *, PartNumber: int, Body: BinaryIO, **_: str) -> dict[str, str]:
        self.parts[PartNumber] = Body.read()
        return {"ETag": f"e{PartNumber}"}

    async def complete_multipart_upload(
        self,
        *,
        MultipartUpload: Any,
        **_: str,
    ) -> None:
        self.completed = [part["PartNumber"] for part in MultipartUpload["Parts"]]


async def cut(content: bytes, piece_bytes: int) -> AsyncIterator[bytes]:
    for first in range(0, len(content), piece_bytes):
        yield content[first : first + piece_bytes]


@pytest.mark.parametrize("piece_bytes", [512 * 1024 + 3, 20 * 1024 * 1024])
@pytest.mark.parametrize(
    ("size_bytes", "parts"),
    [
        pytest.param(0, [], id="nothing"),
        pytest.param(5, [], id="small"),
        pytest.param(PART_BYTES + 700, [], id="a part and a tail"),
        pytest.param(PART_BYTES, [PART_BYTES], id="exactly a part"),
        pytest.param(PART_BYTES + TAIL_BYTES, [PART_BYTES, TAIL_BYTES], id="more than a tail"),
        pytest.param(2 * PART_BYTES + 7, [PART_BYTES, PART_BYTES + 7], id="two and a tail"),
        pytest.param(3 * PART_BYTES - 7, [PART_BYTES] * 2 + [PART_BYTES - 7], id="nearly three"),
    ],
)
async def test_no_part_is_much_smaller_than_the_others(
    size_bytes: int, parts: list[int], piece_bytes: int
) -> None:
    content, uploads = os.urandom(size_bytes), Uploads()

    await upload(uploads.ask, "bucket", "key", cut(content, piece_bytes))

    assert [len(part) for _, part in sorted(uploads.parts.items())] == parts
    assert uploads.completed == list(range(1, len(parts) + 1))
    assert uploads.puts == ([] if parts else [content])
    if parts:
        assert b"".join(part for _, part in sorted(uploads.parts.items())) == content
