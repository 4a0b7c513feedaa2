"""Evictions that could not be taken: listed, sent back, dropped."""

import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import unquote

import msgspec
import structlog

from archive.intake import CONSUMER
from archive.parts import Parts
from schemas.api import (
    ArchiveDead,
    ArchiveDeadChoice,
    ArchiveDeadRequest,
    DeadLetter,
)
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.message import UNDECODABLE
from schemas.protocols import (
    Call,
    Delivery,
    Endpoint,
    LetterStream,
    Publisher,
    PublishError,
    RequestError,
    json_endpoint,
)
from schemas.units import instant

log = structlog.get_logger()

STREAM = "DEAD"
SUBJECT = f"dead.*.{CONSUMER}"
ALL = "api.archive.dead"

_decode_manifest = msgspec.json.Decoder(Evicted).decode


class DeadLetters:
    """What `FLEET_DEAD` holds of the archive's own queue, by namespace.

    A letter that is sent back goes through the eviction stream like any other eviction, so
    versions and tombstones decide about it as ever; it leaves `FLEET_DEAD` once that stream has
    it. Still poison, it dies again, with a new id.
    """

    def __init__(self, stream: LetterStream, publisher: Publisher, parts: Parts) -> None:
        self._stream = stream
        self._publisher = publisher
        self._parts = parts

    def endpoints(self) -> list[Endpoint]:
        """JSON: dead, dead_retry, dead_drop of a namespace, the last token; and dead of all."""
        return [
            json_endpoint(
                "archive_dead_all",
                ALL,
                ArchiveDeadRequest,
                self.list_letters,
                reply_type=ArchiveDead,
            ),
            json_endpoint(
                "archive_dead",
                "api.archive.dead.*",
                ArchiveDeadRequest,
                self.list_letters,
                reply_type=ArchiveDead,
            ),
            json_endpoint(
                "archive_dead_retry",
                "api.archive.dead_retry.*",
                ArchiveDeadChoice,
                self.retry,
                reply_type=DeadLetter,
            ),
            json_endpoint(
                "archive_dead_drop",
                "api.archive.dead_drop.*",
                ArchiveDeadChoice,
                self.drop,
                reply_type=DeadLetter,
            ),
        ]

    async def list_letters(self, request: ArchiveDeadRequest, call: Call) -> ArchiveDead:
        """The letters of the namespace, or of all, oldest first."""
        asked = None if call.subject == ALL else _asked(call)
        found: list[DeadLetter] = []
        async with _readable(), contextlib.aclosing(self._read(request.after + 1)) as deliveries:
            async for delivery in deliveries:
                if asked in (None, _namespace(delivery)):
                    if len(found) == request.limit:
                        return ArchiveDead(letters=found, more=True)
                    found.append(_letter(delivery))
        return ArchiveDead(letters=found, more=False)

    async def retry(self, request: ArchiveDeadChoice, call: Call) -> DeadLetter:
        """Send the letter back to the eviction stream; the letter, as it was."""
        delivery = await self._find(request.id, call)
        letter = _letter(delivery)
        if letter.is_cut:
            raise RequestError(409, f"dead letter {letter.id} was cut: it was too large to keep")
        async with _readable():
            await self._publisher.publish_raw(
                f"evicted.{_asked(call)}",
                delivery.payload,
                delivery.headers,
                message_id=f"{STREAM}:{letter.id}",
            )
            await self._stream.remove(STREAM, letter.id)
        log.info("dead_letter_retried", id=letter.id, reason=letter.reason)
        return letter

    async def drop(self, request: ArchiveDeadChoice, call: Call) -> DeadLetter:
        """Remove the letter, and the parts of its value; the letter, as it was."""
        delivery = await self._find(request.id, call)
        letter = _letter(delivery)
        manifest = _manifest(delivery)
        async with _readable():
            await self._stream.remove(STREAM, letter.id)
        if manifest is not None and manifest.parts and manifest.eviction:
            try:
                await self._parts.remove(manifest)
            except PublishError as error:  # it is dropped: they go by their age
                log.warning("dead_letter_parts_left", id=letter.id, error=str(error))
        log.info("dead_letter_dropped", id=letter.id, reason=letter.reason)
        return letter

    async def _find(self, sequence: int, call: Call) -> Delivery:
        async with _readable(), contextlib.aclosing(self._read(sequence)) as deliveries:
            async for delivery in deliveries:
                if delivery.sequence == sequence and _namespace(delivery) == _asked(call):
                    return delivery
                break
        raise RequestError(404, f"no dead letter {sequence} of namespace {_asked(call)}")

    def _read(self, first: int) -> AsyncGenerator[Delivery, None]:
        return self._stream.read(STREAM, subject=SUBJECT, start_sequence=max(1, first))


@contextlib.asynccontextmanager
async def _readable() -> AsyncGenerator[None, None]:
    try:
        yield
    except PublishError as error:
        raise RequestError(503, f"the streams cannot be used now: {error}") from error


def _asked(call: Call) -> str:
    return call.subject.rpartition(".")[2]


def _namespace(delivery: Delivery) -> str:
    """Of the eviction that died: the last token of the subject it came on."""
    return unquote(delivery.headers.get("Fleet-Dead-Subject", "")).rpartition(".")[2]


def _manifest(delivery: Delivery) -> Evicted | None:
    try:
        return _decode_manifest(decode_header(delivery.headers[EVICTED_HEADER]))
    except (KeyError, ValueError, *UNDECODABLE):
        return None


def _letter(delivery: Delivery) -> DeadLetter:
    manifest = _manifest(delivery)
    return DeadLetter(
        id=delivery.sequence,
        reason=unquote(delivery.headers.get("Fleet-Dead-Reason", "")),
        died_at=instant(delivery.stored_ns),
        payload_bytes=len(delivery.payload),
        key=None if manifest is None else manifest.key,
        version=None if manifest is None else manifest.version,
        size_bytes=None if manifest is None else manifest.size_bytes,
        parts=0 if manifest is None else manifest.parts,
        is_cut="Fleet-Dead-Cut" in delivery.headers,
        namespace=_namespace(delivery),
    )
