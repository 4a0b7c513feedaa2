"""Uploads that were never completed, on servers that say unusual things of them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from archive.s3 import S3Store
from archive.settings import S3Settings
from benchmarks.moto import CREDENTIALS
from tests.support.s3_double import Answer, S3Double, http, s3_error

UPLOAD = (
    "<Upload><Key>one/objects/{0}</Key><UploadId>{0}</UploadId>"
    "<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@asynccontextmanager
async def store_on(answer: Callable[[str, str], Answer]) -> AsyncIterator[S3Store]:
    """A store on a server that answers so where uploads are listed or aborted."""

    def any_answer(method: str, path: str, _headers: dict[str, str]) -> Answer:
        return answer(method, path) if "upload" in path else http(200)

    async with S3Double(any_answer) as server:
        store = S3Store("bucket", "one/", S3Settings(endpoint_url=server.url, attempts=1))
        await store.open()
        try:
            yield store
        finally:
            await store.close()


async def test_a_server_that_calls_no_uploads_unknown_ones_has_none() -> None:
    async with store_on(lambda *_: s3_error(404, "NoSuchUpload")) as store:
        assert await store.remove_leftovers(older_than_seconds=0) == 0


async def test_an_upload_that_another_archiver_ends_meanwhile_keeps_none_of_the_rest() -> None:
    left = ["first", "gone", "last"]

    def answer(method: str, path: str) -> Answer:
        if method == "GET":
            listed = "".join(UPLOAD.format(name) for name in left)
            body = f"<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>"
            return http(200, body.encode())
        name = path.rpartition("uploadId=")[2].partition("&")[0]
        left.remove(name)
        return s3_error(404, "NoSuchUpload") if name == "gone" else http(204)

    async with store_on(answer) as store:
        assert await store.remove_leftovers(older_than_seconds=0) == 2
        assert left == []
