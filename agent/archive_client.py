"""The typed client of the archive: what it holds, dead letters, work on the whole of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, TypeVar

import msgspec

from agent.bus import Bus
from agent.transfer import OnProgress
from schemas.api import (
    ArchiveDead,
    ArchiveDeadChoice,
    ArchiveDeadRequest,
    ArchiveEntry,
    ArchiveJob,
    ArchiveJobRequest,
    ArchiveList,
    ArchiveListRequest,
    ArchiveStatus,
    DeadLetter,
)
from schemas.cache import (
    EVICTED_HEADER,
    INLINE_LIMIT_BYTES,
    PART_BYTES,
    PARTS_IN_FLIGHT,
    Evicted,
    decode_header,
    part_count,
    part_range,
)
from schemas.digest import Digest, RunningDigest, digest_of
from schemas.protocols import RequestError
from schemas.units import token

T = TypeVar("T", bound=msgspec.Struct)

TIMEOUT_SECONDS = 10.0
RESTORE_SECONDS = 30.0
POLL_SECONDS = 0.25
AWAY_SECONDS = 5.0
"""A keeper that loses its store answers again as one that is refused it; who died does not."""
OnJob = Callable[[ArchiveJob], None]


class ArchiveClient:
    """One namespace of the archive. Raises `schemas.protocols.RequestError` where refused."""

    def __init__(self, bus: Bus, namespace: str = "default") -> None:
        self._bus = bus
        self._namespace = token(namespace)

    async def status(self) -> ArchiveStatus:
        """What it holds, what waits, what went wrong."""
        return await self._ask("status", None, ArchiveStatus)

    async def check_known(self) -> None:
        """Find nothing wrong with the name of the namespace, as far as this user may ask.

        Raises:
            RequestError: 404 the archive knows none of that name; near ones are named.
        """
        try:
            await self.status()
        except RequestError as error:
            if error.code == 404:
                raise

    async def entries(self, prefix: str = "", after: str = "") -> AsyncIterator[ArchiveEntry]:
        """Entries that can be restored, by key, page after page."""
        while True:
            request = ArchiveListRequest(prefix=prefix, after=after)
            page = await self._ask("list", request, ArchiveList)
            for entry in page.entries:
                yield entry
            if not page.more:
                return
            after = page.entries[-1].key

    async def get(self, key: str, on_progress: OnProgress | None = None) -> bytes | None:
        """The archived value, verified, or None; the cache in front of it is not asked.

        Counts as restored.
        """
        encoded = key.encode()
        answer = await self._bus.request(
            f"api.archive.restore.{self._namespace}",
            encoded,
            {"Fleet-Gate": "off"},
            timeout_seconds=RESTORE_SECONDS,
        )
        if answer.headers.get("Fleet-Status") == "miss":
            return None
        header = decode_header(answer.headers[EVICTED_HEADER])
        manifest = msgspec.json.decode(header, type=Evicted)
        if manifest.size_bytes > INLINE_LIMIT_BYTES:
            instance = answer.headers["Fleet-Instance"]
            return await self._ranges(encoded, manifest, instance, on_progress)
        _check(manifest, digest_of(answer.payload, manifest.digest))
        return answer.payload

    async def dead(self, *, everywhere: bool = False) -> AsyncIterator[DeadLetter]:
        """Evictions that could not be taken, oldest first; `everywhere`: of all namespaces."""
        request = ArchiveDeadRequest()
        subject = "api.archive.dead" if everywhere else f"api.archive.dead.{self._namespace}"
        while True:
            page = await self._ask_at(subject, request, ArchiveDead)
            for letter in page.letters:
                yield letter
            if not page.more:
                return
            request = ArchiveDeadRequest(after=page.letters[-1].id)

    async def retry(self, letter: int) -> DeadLetter:
        """Send a dead letter back to the eviction stream."""
        return await self._ask("dead_retry", ArchiveDeadChoice(id=letter), DeadLetter)

    async def drop(self, letter: int) -> DeadLetter:
        """Remove a dead letter and the parts of its value."""
        return await self._ask("dead_drop", ArchiveDeadChoice(id=letter), DeadLetter)

    async def run(
        self, job: Literal["sweep", "reindex"], on_job: OnJob, *, adopt: bool = False
    ) -> ArchiveJob:
        """Have work on the whole archive done; `on_job` hears how far it is.

        `adopt`: a reindex takes over a store that is not this installation's.

        One that ends as its keeper loses the store has failed, and `error` says why.

        Raises:
            RequestError: 503 the archiver that did it has gone.
        """
        subject = f"api.archive.{job}"
        first = found = await self._ask_at(subject, ArchiveJobRequest(adopt=adopt), ArchiveJob)
        while found.state == "running":
            on_job(found)
            await asyncio.sleep(POLL_SECONDS)
            found = await self._news(subject, first.instance)
            if found.instance != first.instance or found.state == "never":
                raise RequestError(503, f"archive {first.instance} stopped before it was done")
        on_job(found)
        return found

    async def _news(self, subject: str, instance: str) -> ArchiveJob:
        """How far the job of `instance` is; nobody may answer for a moment."""
        ends_at = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return await self._ask_at(subject, ArchiveJobRequest(start=False), ArchiveJob)
            except RequestError as error:
                if error.code != 503:
                    raise
                if time.monotonic() > ends_at:
                    gone = f"archive {instance} stopped before it was done: {error.text}"
                    raise RequestError(503, gone) from None
            await asyncio.sleep(POLL_SECONDS)

    async def _ranges(
        self, key: bytes, manifest: Evicted, instance: str, on_progress: OnProgress | None
    ) -> bytes:
        pieces, done_bytes = [b""] * part_count(manifest.size_bytes), 0
        parts = iter(range(len(pieces)))
        subject = f"api.archive.range.{self._namespace}.{token(instance)}"

        def feed(digest: Digest, first: int, end: int) -> None:
            for piece in pieces[first // PART_BYTES : part_count(end)]:
                digest.update(piece)

        digest = RunningDigest(feed, like=manifest.digest)

        async def read() -> None:
            nonlocal done_bytes
            for part in parts:
                first, end = part_range(part, manifest.size_bytes)
                headers = {
                    "Fleet-Version": manifest.version,
                    "Fleet-Range": f"{first}-{end - 1}",
                }
                answer = await self._bus.request(
                    subject, key, headers, timeout_seconds=TIMEOUT_SECONDS
                )
                pieces[part] = answer.payload
                digest.came(first, end)
                done_bytes += end - first
                if on_progress is not None:
                    on_progress(done_bytes, manifest.size_bytes)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARTS_IN_FLIGHT):
                    group.create_task(read())
            _check(manifest, await digest.finish())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            digest.cancel()
        return b"".join(pieces)

    async def _ask(self, name: str, body: msgspec.Struct | None, reply: type[T]) -> T:
        return await self._ask_at(f"api.archive.{name}.{self._namespace}", body, reply)

    async def _ask_at(self, subject: str, body: Any, reply: type[T]) -> T:  # noqa: ANN401 - a Struct
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self._bus.request(subject, payload, timeout_seconds=TIMEOUT_SECONDS)
        return msgspec.json.decode(answer.payload, type=reply)


def _check(manifest: Evicted, digest: str) -> None:
    if digest != manifest.digest:
        raise RequestError(500, "what the archive sent does not have its digest")
