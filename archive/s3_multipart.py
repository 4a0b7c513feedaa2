"""Uploads to S3 of a length not known before, in parts, with a few MiB in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from archive.s3_body import Body
from archive.s3_errors import unless_no_upload
from archive.store import StoreError

PART_BYTES = 8 * 1024 * 1024
"""S3 takes 5 MiB to 5 GiB and 10,000 parts: objects of up to 78 GiB."""
TAIL_BYTES = 1024 * 1024
"""A part of less is not sent by itself but with the one before: each costs as much as any other."""
PARTS_IN_FLIGHT = 4
ABORT_SECONDS = 5.0

Part = list[memoryview]
"""In pieces, as they came."""
Ask = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
"""Makes one request with the client, under a deadline; raises StoreError."""


async def upload(ask: Ask, bucket: str, key: str, pieces: AsyncIterable[bytes]) -> None:
    """Store the concatenation of `pieces` under `key`; one part, and a tail, by a plain put.

    Where anything fails, or the caller gives up, the upload is aborted: nothing of it is visible,
    and nothing is left that costs money, unless the server cannot be reached for that either.
    """
    parts = _parts(pieces)
    first: Part = await anext(parts, [])
    if sum(map(len, first)) != PART_BYTES:  # it is the last
        await ask(lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=Body(*first)))
        return
    begun = await ask(lambda s3: s3.create_multipart_upload(Bucket=bucket, Key=key))
    named = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
    try:
        done = await _send(ask, named, first, parts)
        await ask(lambda s3: s3.complete_multipart_upload(MultipartUpload={"Parts": done}, **named))
    except BaseException:
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                await asyncio.shield(
                    asyncio.ensure_future(ask(lambda s3: s3.abort_multipart_upload(**named)))
                )
        raise


async def abort_older(ask: Ask, bucket: str, prefix: str, before: datetime) -> int:
    """Abort uploads below `prefix` that were begun before that; how many.

    Those that another archiver completes or aborts meanwhile are left out.
    """

    async def abort(which: dict[str, str]) -> bool:
        answer = await ask(lambda s3: unless_no_upload(s3.abort_multipart_upload(**which)))
        return answer is not None

    asked = {"Bucket": bucket, "Prefix": prefix}
    aborted = 0
    while True:
        page = await ask(lambda s3: unless_no_upload(s3.list_multipart_uploads(**asked)))
        if page is None:
            return aborted
        for found in page.get("Uploads", ()):
            if found["Initiated"] <= before:
                which = {"Bucket": bucket, "Key": found["Key"], "UploadId": found["UploadId"]}
                aborted += await abort(which)
        if not page.get("IsTruncated"):
            return aborted
        asked["KeyMarker"] = page["NextKeyMarker"]
        asked["UploadIdMarker"] = page["NextUploadIdMarker"]


async def _send(
    ask: Ask, named: dict[str, str], first: Part, rest: AsyncIterator[Part]
) -> list[dict[str, Any]]:
    async def send(number: int, part: Part) -> dict[str, Any]:
        try:
            answer = await ask(
                lambda s3: s3.upload_part(PartNumber=number, Body=Body(*part), **named)
            )
        finally:
            slots.release()
        return {"PartNumber": number, "ETag": answer["ETag"]}

    slots = asyncio.Semaphore(PARTS_IN_FLIGHT)
    try:
        async with asyncio.TaskGroup() as group:
            await slots.acquire()
            sending = [group.create_task(send(1, first))]
            async for part in rest:
                await slots.acquire()
                sending.append(group.create_task(send(len(sending) + 1, part)))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in sending]


async def _parts(pieces: AsyncIterable[bytes]) -> AsyncIterator[Part]:
    """`pieces` cut anew: each part but the last is exactly `PART_BYTES` long."""
    full: Part = []  # a part that waits: what comes behind it may be no more than a tail
    part: Part = []
    missing = PART_BYTES
    async for piece in pieces:
        rest = memoryview(piece)
        while rest:
            part.append(rest[:missing])
            rest = rest[missing:]
            missing -= len(part[-1])
            if full and PART_BYTES - missing >= TAIL_BYTES:
                yield full
                full = []
            if not missing:
                full, part, missing = part, [], PART_BYTES
    if full or part:
        yield [*full, *part]
