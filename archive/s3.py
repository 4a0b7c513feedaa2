"""Objects in a bucket of S3, or of a server like it; the only module that imports aioboto3."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import aioboto3
import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from archive.billing import Requests
from archive.lifecycle import LifecycleReport
from archive.money import billed_as
from archive.s3_body import Body
from archive.s3_config import config
from archive.s3_errors import OF_ONE_OBJECT, code, detail
from archive.s3_failures import failure, other_scheme
from archive.s3_lifecycle import install
from archive.s3_multipart import abort_older, upload
from archive.s3_rights import ForbiddenError, needed_right, refusals
from archive.s3_signing import sign_in_threads
from archive.settings import S3Settings
from archive.store import (
    LEFTOVER_SECONDS,
    ObjectRefusedError,
    StoredObject,
    StoreError,
    check_name,
    is_name,
)

T = TypeVar("T")

TRIAL_WRITE_SECONDS = 60.0
"""Between two trial writes while all is well: each costs as much as a thousand reads."""
MAX_DETAIL_CHARACTERS = 300
NO_NAME = "0" * 64
"""Asked for by probes; no SHA-256 is known that ends so."""
THERE_ALREADY = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "409", "412"})
KNOWS_NO_CONDITIONS = frozenset({"NotImplemented", "501"})
_BROKEN_BODY = (aiohttp.ClientError, HTTPClientError, IncompleteReadError)
_FAILURES = (OSError, ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError)


class S3Store:
    """Objects below a prefix of a bucket: `objects/<name>`, damaged ones in `damaged/<name>`.

    An object is visible only when it is whole, and durable when a put is answered: S3's own
    guarantees. Each upload is signed with its SHA-256, which every server compares with what it
    received; the newer checksum trailers are left out, because servers other than AWS refuse
    them or store them as part of the object. What is read carries its own digests.

    At most `connections` requests run at once, the others wait; each has one deadline for all
    its tries. Failures are StoreErrors with the remedy. After refused credentials the next
    `probe` reads them anew, so that new ones need no restart.
    """

    def __init__(self, bucket: str, prefix: str, settings: S3Settings) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._objects = f"{prefix}objects/"
        self._mark = f"{prefix}owner.json"
        self._settings = settings
        self._endpoint = settings.endpoint_url or "AWS"
        self.description = f"s3://{bucket}/{prefix} at {self._endpoint}"
        self.requests = Requests()
        self._slots = asyncio.Semaphore(settings.connections)
        self._connecting = asyncio.Lock()
        self._client: Any = None
        self._closing = contextlib.AsyncExitStack()
        self._must_reconnect = False
        self._trial_due_seconds = 0.0

    async def open(self) -> None:
        """Read settings and credentials; the server itself is not asked yet.

        Raises:
            StoreError: a setting cannot be used. Credentials that are not there may come later.
        """
        try:
            await self._connect()
        except StoreError:
            if not self._must_reconnect:
                raise

    async def close(self) -> None:
        """Close all connections."""
        await self._closing.aclose()

    async def put(self, name: str, content: bytes) -> None:
        """Store durably; an object of that name is replaced."""
        key = self._key(name)
        bucket = self._bucket
        await self._ask(lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=Body(content)))

    async def put_stream(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """Store the concatenation of `pieces`, in parts of 8 MiB where it is longer than one."""
        await upload(self._ask, self._bucket, self._key(name), pieces)

    async def get(self, name: str) -> bytes | None:
        """The whole object, or None."""
        pieces: list[bytes] = []
        return b"".join(pieces) if await self._read(self._key(name), pieces.append) else None

    async def get_range(self, name: str, first: int, end: int) -> bytes | None:
        """Its bytes from `first` up to, not with, `end`; shorter where it ends; None: absent."""
        pieces: list[bytes] = []
        is_there = await self.get_range_to(name, first, end, pieces.append)
        return b"".join(pieces) if is_there else None

    async def get_range_to(
        self, name: str, first: int, end: int, take: Callable[[bytes], None]
    ) -> bool:
        """As `get_range`, given to `take` in order as they come; False: absent."""
        key = self._key(name)
        return await self._read(key, take, first, end) if end > first else True

    async def stat(self, name: str) -> StoredObject | None:
        """The object without its content, or None."""
        # A listing, as the answer to a HEAD has no body that tells a missing key from a proxy.
        asked = {"Bucket": self._bucket, "Prefix": self._key(name), "MaxKeys": 1}
        page = await self._ask(lambda s3: s3.list_objects_v2(**asked))
        sizes = {item["Key"]: item["Size"] for item in page.get("Contents", ())}
        size_bytes = sizes.get(self._key(name))
        return None if size_bytes is None else StoredObject(name, size_bytes)

    async def delete(self, name: str) -> None:
        """Remove; absent is fine."""
        asked = {"Bucket": self._bucket, "Key": self._key(name)}
        await self._change_one(name, lambda s3: _unless_absent(s3.delete_object(**asked)))

    async def quarantine(self, name: str) -> None:
        """Move to `damaged/<name>`, for an operator to look at."""
        source = {"Bucket": self._bucket, "Key": self._key(name)}
        target = f"{self._prefix}damaged/{name}"
        copied = await self._change_one(
            name,
            lambda s3: _unless_absent(
                s3.copy_object(Bucket=self._bucket, Key=target, CopySource=source)
            ),
        )
        if copied is not None:
            await self.delete(name)

    async def list_objects(self) -> list[StoredObject]:
        """All objects, in no order."""
        asked = {"Bucket": self._bucket, "Prefix": self._objects}
        objects: list[StoredObject] = []
        while True:
            page = await self._ask(lambda s3: s3.list_objects_v2(**asked))
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(self._objects)
                if is_name(name):
                    objects.append(StoredObject(name, item["Size"]))
            if not page.get("IsTruncated"):
                return objects
            asked["ContinuationToken"] = page["NextContinuationToken"]

    async def remove_leftovers(self, older_than_seconds: float = LEFTOVER_SECONDS) -> int:
        """Abort uploads that were begun that long ago and never completed."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        return await abort_older(self._ask, self._bucket, self._objects, before)

    async def read_mark(self) -> bytes | None:
        """What says whose the prefix is, or None."""
        pieces: list[bytes] = []
        return b"".join(pieces) if await self._read(self._mark, pieces.append) else None

    async def write_mark(self, content: bytes, *, replace: bool) -> None:
        """Write that; without `replace` one that is there stays, where the server knows how."""
        asked = {"Bucket": self._bucket, "Key": self._mark, "Body": content}

        async def write(s3: Any) -> None:  # noqa: ANN401 - botocore's client
            if not replace:
                try:
                    await s3.put_object(**asked, IfNoneMatch="*")
                    return
                except ClientError as error:
                    if code(error) in THERE_ALREADY:
                        return
                    if code(error) not in KNOWS_NO_CONDITIONS:
                        raise
            await s3.put_object(**asked)

        await self._ask(write)

    async def install_lifecycle(self) -> LifecycleReport:
        """Have our rules on the bucket; those of others stay as they are."""
        if self._settings.lifecycle == "off":
            return LifecycleReport("off", "archive.s3.lifecycle is off: only the sweep removes")
        return await install(self._ask, self._bucket, self._objects)

    async def refusals(self) -> list[StoreError]:
        """What of all that the archive asks for is refused, or fails; for an operator who looks.

        Objects of its own are written and removed; rules are put on the bucket as an archive does
        that runs.
        """
        found = [error async for error in refusals(self._ask, self._bucket, self._prefix)]
        if all(isinstance(error, ForbiddenError) for error in found):
            report = await self.install_lifecycle()
            if report.state == "degraded":
                found.append(StoreError(f"archive {self.description}: {report.text}"))
        return found

    async def probe(self) -> str:
        """Ask for an object; once a minute, and after a failure, write and delete one instead."""
        if self._must_reconnect:
            await self._reconnect()
        began = time.monotonic()
        if began < self._trial_due_seconds:
            await self.get_range(NO_NAME, 0, 1)
        else:
            self._trial_due_seconds = 0.0
            await self._try_write()
            self._trial_due_seconds = began + TRIAL_WRITE_SECONDS
        return f"answers in {time.monotonic() - began:.3f} s"

    async def _try_write(self) -> None:
        key = f"{self._prefix}probe"
        await self._ask(lambda s3: s3.put_object(Bucket=self._bucket, Key=key, Body=b"probe"))
        await self._delete(key)

    async def _delete(self, key: str) -> None:
        await self._ask(lambda s3: _unless_absent(s3.delete_object(Bucket=self._bucket, Key=key)))

    async def _read(
        self, key: str, take: Callable[[bytes], None], first: int = 0, end: int | None = None
    ) -> bool:
        """Give the object's bytes of that range to `take`, as they come; False: it is absent."""
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if end is not None:
            asked["Range"] = f"bytes={first}-{end - 1}"
        taken = 0

        async def read(s3: Any) -> bool:  # noqa: ANN401 - botocore's client
            for attempt in range(1, self._settings.attempts + 1):
                try:
                    answer = await _unless_absent(s3.get_object(**asked))
                except ClientError as error:
                    if code(error) == "InvalidRange":  # the object ends before it
                        return True
                    if code(error) in OF_ONE_OBJECT:
                        # One that is not there is asked for: are all of them refused?
                        nothing = {"Bucket": self._bucket, "Key": self._key(NO_NAME)}
                        await _unless_absent(s3.get_object(**nothing))
                        raise self._refused(key, error) from error
                    raise
                if answer is None:
                    return False
                try:
                    async with answer["Body"] as body:
                        await take_new(body.content.iter_any())
                    return True
                except _BROKEN_BODY:
                    # botocore tries again until an answer begins, but not when it breaks off.
                    if attempt == self._settings.attempts:
                        raise
            return False

        async def take_new(pieces: AsyncIterable[bytes]) -> None:
            """All but what an answer that broke off had already: no object ever changes."""
            nonlocal taken
            come = 0
            async for piece in pieces:
                known, come = taken - come, come + len(piece)
                if come > taken:
                    take(piece[max(known, 0) :])
                    taken = come

        return await self._ask(read)

    async def _change_one(self, name: str, request: Callable[[Any], Awaitable[T]]) -> T:
        """A refusal is that of the object alone where a trial object is written and deleted."""
        try:
            return await self._ask(request)
        except StoreError as error:
            cause = error.__cause__
            if not isinstance(cause, ClientError) or code(cause) not in OF_ONE_OBJECT:
                raise
            await self._try_write()
            raise self._refused(self._key(name), cause) from error

    def _refused(self, key: str, error: ClientError) -> ObjectRefusedError:
        reason = detail(error)[:MAX_DETAIL_CHARACTERS]
        return ObjectRefusedError(key.removeprefix(self._objects), reason)

    async def _ask(self, request: Callable[[Any], Awaitable[T]]) -> T:
        async with self._slots:
            async with self._connecting:
                if self._client is None:
                    await self._connect()
            try:
                async with asyncio.timeout(self._settings.deadline_seconds):
                    return await request(self._client)
            except _FAILURES as error:
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        said = whole = str(error)
        names = [kind.__name__ for kind in type(error).__mro__]
        operation = ""
        if isinstance(error, ClientError):
            names = [code(error)]
            said = detail(error)
            operation = str(error.operation_name)
        meaning = failure(names, whole)
        if meaning.credentials:
            self._must_reconnect = True
        self._trial_due_seconds = 0.0
        raised = ForbiddenError if meaning.forbidden else StoreError
        text = meaning.text.format(
            bucket=self._bucket,
            endpoint=self._endpoint,
            deadline=f"{self._settings.deadline_seconds:g}",
            detail=said[:MAX_DETAIL_CHARACTERS],
            operation=operation,
            other_scheme=other_scheme(self._endpoint),
            right=needed_right(operation, said, self._bucket, self._prefix),
        )
        return raised(f"archive {self.description}: {text}")

    async def _reconnect(self) -> None:
        """Read the credentials anew, once nothing runs on the old connections."""
        async with contextlib.AsyncExitStack() as slots:
            for _ in range(self._settings.connections):
                await slots.enter_async_context(self._slots)
            await self._connect()

    async def _connect(self) -> None:
        settings = self._settings
        stack = contextlib.AsyncExitStack()
        try:
            async with asyncio.timeout(settings.deadline_seconds):
                session = aioboto3.Session(
                    profile_name=settings.profile or None, region_name=settings.region or None
                )
                # Any region will do for a server that has none; AWS's own is found by the bucket.
                region = session.region_name or "us-east-1"
                client = await stack.enter_async_context(
                    session.client(
                        "s3",
                        region_name=region,
                        endpoint_url=settings.endpoint_url or None,
                        verify=settings.ca_bundle or None,
                        config=config(settings),
                    )
                )
        except (OSError, BotoCoreError, ValueError) as error:
            raise self._failed(error) from error
        # It would cost each upload a round trip, and hangs with servers that do not answer it.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        client.meta.events.register("before-send.s3", self._count)
        if settings.checksums == "when_required":
            sign_in_threads(client.meta.events)
        old, self._closing, self._client = self._closing, stack, client
        self._must_reconnect = False
        await old.aclose()

    def _count(self, request: Any, **_: Any) -> None:  # noqa: ANN401 - botocore's request
        self.requests.made(billed_as(request.method, request.url))

    def _key(self, name: str) -> str:
        return f"{self._objects}{check_name(name)}"


async def _unless_absent(call: Awaitable[T]) -> T | None:
    """What `call` returns, or None where there is no such object.

    Only S3's own word counts: a 404 of whatever else answers there is a failure, not a miss.
    """
    try:
        return await call
    except ClientError as error:
        if code(error) == "NoSuchKey":
            return None
        raise
