"""Uploads in parts: large values received in place, and nothing of them visible before the end."""

import asyncio
import dataclasses
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from cache.requests import PutRequest
from cache.room import Room
from cache.value_file import Draft, ValueFile
from schemas.cache import PART_BYTES, part_count, part_range
from schemas.digest import Digest, RunningDigest
from schemas.protocols import Answer, Call, Endpoint, RequestError, busy

log = structlog.get_logger()

REMEMBERED = 256
"""Finished uploads whose answer is kept, for who asks for the last part again."""
_NAME = re.compile("[0-9a-f]{32}")

Store = Callable[[PutRequest, memoryview | ValueFile], Answer | Awaitable[Answer]]
"""Makes the value visible, if its key still has the expected version; gives the put's answer."""


@dataclasses.dataclass(slots=True, eq=False)
class _Upload:
    """One value on its way, and its `missing` parts."""

    name: str
    request: PutRequest
    draft: Draft
    missing: set[int]
    timer: asyncio.TimerHandle
    digest: RunningDigest
    finishing: "asyncio.Future[Answer] | None" = None
    finisher: asyncio.Task[None] | None = None


class Uploads:
    """Receives the large values of one namespace.

    A part is copied once, into a draft of the value's size that then is the value. All drafts
    are within `room`: an upload for which there is none is refused with 429 before anything is
    kept. An upload without a new part for `timeout_seconds` is forgotten, and so is one that its
    sender gives up, and all at `close`. Parts may come in any order, and again: what is here
    already is not replaced. The digest is computed while further parts come. `store` is called
    once, with a value whose digest is right.
    """

    def __init__(
        self,
        namespace: str,
        instance: str,
        store: Store,
        room: Room,
        make_draft: Callable[[int], Draft],
        *,
        timeout_seconds: float,
    ) -> None:
        self._namespace = namespace
        self._instance = instance
        self._store = store
        self.room = room
        self._make_draft = make_draft
        self._timeout_seconds = timeout_seconds
        self._uploads: dict[str, _Upload] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self.aborted = 0

    def __len__(self) -> int:
        """Uploads under way."""
        return len(self._uploads)

    def endpoint(self) -> Endpoint:
        """Takes parts, at this instance alone."""
        name = self._namespace
        return Endpoint(
            f"cache_put_part_{name}", f"cache.{name}.put.{self._instance}", self.receive
        )

    def begin(self, request: PutRequest, name: str | None = None) -> Answer:
        """Reserve room for the value; the answer says how to send it.

        The sender may choose the `name`: asked again, as the answer was lost, it is the same
        upload, and can be given up without the answer.

        Raises:
            RequestError: 429, the room for uploads is taken; 400, that is no name; 409, it is that
                of another value's upload.
        """
        size_bytes = request.size_bytes
        name = _checked_name(name) if name is not None else secrets.token_hex(16)
        answer = Answer(headers={"Fleet-Upload": name, "Fleet-Instance": self._instance})
        known = self._uploads.get(name)
        if known is not None and _is_same(known.request, request):
            return answer
        if known is not None or name in self._answers:
            raise RequestError(409, "header Fleet-Upload: another upload has it; choose another")
        if not self.room.take(size_bytes):
            raise busy(
                f"values under way hold {self.room.used_bytes} of {self.room.max_bytes} bytes "
                "(cache.uploads_max_bytes); try later"
            )
        draft = self._make_draft(size_bytes)
        self._uploads[name] = _Upload(
            name=name,
            request=request,
            draft=draft,
            missing=set(range(part_count(size_bytes))),
            timer=self._start_timer(name),
            digest=RunningDigest(draft.digest, like=request.digest),
        )
        return answer

    def receive(self, call: Call) -> Answer | Awaitable[Answer]:
        """Keep one part; the one that completes the value is answered as its put.

        `Fleet-Digest` may come with any part, where the put did not have it: who streams knows it
        only at the end. `Fleet-Abort: 1` instead of a part forgets the upload: once that is
        answered it will not be kept any more, unless it was before.
        """
        name = call.headers.get("Fleet-Upload", "")
        if is_abort(call):
            self._abort(name)
            return Answer()
        if name in self._answers:
            return self._answers[name]
        upload = self._uploads.get(name)
        if upload is None:
            raise RequestError(
                404, "header Fleet-Upload: no such upload here, or no more; begin again with put"
            )
        request = upload.request
        part = _part_number(call.headers, part_count(request.size_bytes))
        first, end = part_range(part, request.size_bytes)
        if len(call.payload) != end - first:
            raise RequestError(
                400, f"part {part} has {end - first} bytes, not {len(call.payload)}: parts are "
                f"{PART_BYTES} bytes, the last one what is left"
            )  # fmt: skip
        request.read_digest(call.headers)
        if part in upload.missing:
            upload.draft.write(first, call.payload)
            upload.missing.discard(part)
            upload.timer.cancel()
            upload.timer = self._start_timer(name)
            upload.digest.came(first, end)
        if upload.missing:
            return Answer()
        if upload.finishing is None:
            upload.finishing = asyncio.get_running_loop().create_future()
            upload.timer.cancel()
            upload.finisher = asyncio.create_task(self._finish(upload, upload.finishing))
        return asyncio.shield(upload.finishing)

    def close(self) -> None:
        """Forget all uploads; who still waits for an answer gets 503."""
        for upload in list(self._uploads.values()):
            self._give_up(upload)

    async def _finish(self, upload: _Upload, finished: "asyncio.Future[Answer]") -> None:
        try:
            answer = await self._complete(upload)
        except Exception as error:
            finished.set_exception(error)
            finished.exception()  # looked at, should nobody wait any more
        except asyncio.CancelledError:
            _refuse(finished)
            raise
        else:
            self._answers[upload.name] = answer
            while len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
            finished.set_result(answer)
        finally:
            self._drop(upload.name)

    async def _complete(self, upload: _Upload) -> Answer:
        request = upload.request
        if not request.digest:
            raise RequestError(400, "header Fleet-Digest is missing: with put, or with any part")
        if upload.digest.algorithm != Digest(like=request.digest).algorithm:
            # Which one it is to be came only with a later part.
            upload.digest.cancel()
            upload.digest = RunningDigest(upload.draft.digest, like=request.digest)
            upload.digest.came(0, request.size_bytes)
        if await upload.digest.finish() != request.digest:
            raise RequestError(
                400, "header Fleet-Digest: the parts have another digest; send the value again"
            )
        answer = self._store(request, upload.draft.finish())
        return answer if isinstance(answer, Answer) else await answer

    def _start_timer(self, name: str) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(self._timeout_seconds, self._time_out, name)

    def _time_out(self, name: str) -> None:
        self.aborted += 1
        log.info("upload_given_up", namespace=self._namespace, size_bytes=self._drop(name))

    def _abort(self, name: str) -> None:
        upload = self._uploads.get(name)
        if upload is not None:
            self.aborted += 1
            self._give_up(upload)

    def _give_up(self, upload: _Upload) -> None:
        if upload.finisher is not None and upload.finishing is not None:
            upload.finisher.cancel()
            _refuse(upload.finishing)  # the task may not have begun, and will not then
        self._drop(upload.name)

    def _drop(self, name: str) -> int:
        upload = self._uploads.pop(name, None)
        if upload is None:
            return 0
        upload.timer.cancel()
        upload.digest.cancel()
        self.room.give_back(upload.request.size_bytes)
        return upload.request.size_bytes


def is_abort(call: Call) -> bool:
    """Whether the sender of an upload gives it up."""
    return call.headers.get("Fleet-Abort") == "1"


def _is_same(one: PutRequest, other: PutRequest) -> bool:
    return (one.key, one.size_bytes) == (other.key, other.size_bytes)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestError(400, f"header Fleet-Upload: must match {_NAME.pattern}")
    return name


def _refuse(finished: "asyncio.Future[Answer]") -> None:
    if not finished.done():
        finished.set_exception(RequestError(503, "this instance gave the upload up; ask again"))
        finished.exception()  # looked at, should nobody wait any more


def _part_number(headers: Any, parts: int) -> int:  # noqa: ANN401 - the call's headers
    text = headers.get("Fleet-Part", "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else parts
    if number >= parts:
        raise RequestError(400, f"header Fleet-Part: must be 0 to {parts - 1}, not {text!r:.40}")
    return number
