"""Publishing: at most once without acknowledgement, or until the stream has acknowledged it."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import msgspec
import nats.errors

from agent.bus.cancellation import heed
from agent.bus.client import DeniedError, Question, size_on_wire
from agent.bus.connection import Connection
from agent.bus.names import Names
from agent.human import reason
from schemas.message import UNDECODABLE, Message
from schemas.protocols import Answer, PublishError, StreamFullError, TooLargeError

ACK_DEADLINE_SECONDS = 5.0
ACK_TRY_SECONDS = 1.5
LIMIT_ERROR_CODES = frozenset({10077, 10047, 10023, 10122})
"""Server codes for no room: too many messages or bytes, no resources, no storage."""


class _Refusal(msgspec.Struct, frozen=True):
    description: str = ""
    err_code: int = 0


class _PubAck(msgspec.Struct, frozen=True):
    """A stream's answer to who publishes to it (ADR-1)."""

    stream: str = ""
    duplicate: bool = False
    error: _Refusal | None = None


_decode_pub_ack = msgspec.json.Decoder(_PubAck).decode


def _is_taken(ack: bytes) -> bool:
    try:
        taken = _decode_pub_ack(ack)
    except UNDECODABLE:
        return False
    return taken.error is None and bool(taken.stream)


class PublishingConnection(Connection):
    """A connection that implements Publisher.

    While disconnected, messages that are not durable are dropped and counted (a late metric would
    look like a new one); durable ones wait for the acknowledgement until their deadline and then
    raise PublishError.
    """

    def __init__(self, url: str, name: str, names: Names, inbox_prefix: str) -> None:
        super().__init__(url, name, inbox_prefix)
        self.names = names

    async def publish(self, message: Message, *, message_id: str | None = None) -> None:
        """Publish `message` on its subject; a DURABLE one waits for the acknowledgement."""
        payload = msgspec.json.encode(message)
        if message.STREAM is not None and message.DURABLE:
            if message_id is None:
                raise ValueError(
                    f"{type(message).__name__} goes to a stream and needs a message id"
                )
            await self.publish_raw(message.subject(), payload, message_id=message_id)
            return
        await self.send(message.subject(), payload)

    async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Publish DURABLE messages together; see Publisher."""
        questions = []
        for message, message_id in messages:
            subject, payload = message.subject(), msgspec.json.encode(message)
            headers = {"Nats-Msg-Id": message_id}
            self._refuse_too_large(subject, payload, headers)
            questions.append(Question(self.names.absolute(subject), payload, headers))
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._client.ask_all(questions, ACK_TRY_SECONDS)
        except (nats.errors.Error, OSError) as error:
            answers = [error] * len(messages)
        for (message, message_id), answer in zip(messages, answers, strict=True):
            if not isinstance(answer, Answer) or not _is_taken(answer.payload):
                await self.publish(message, message_id=message_id)  # tries again, or says why

    async def send(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish at most once, without acknowledgement; dropped and counted while disconnected.

        Raises:
            TooLargeError: headers and payload together exceed the server's `max_payload`.
        """
        self._refuse_too_large(subject, payload, headers)
        if not self._client.is_connected:
            self.counters["dropped_while_disconnected_total"] += 1
            return
        full = self.names.absolute(subject)
        try:
            await heed(
                self._client.publish(full, payload, headers=dict(headers) if headers else None)
            )
        except (nats.errors.Error, OSError) as error:
            self.counters["dropped_while_disconnected_total"] += 1
            self._incidents.log_seldom("publish_dropped", subject=subject, error=reason(error))

    async def publish_raw(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        message_id: str,
    ) -> None:
        """Publish to the stream that keeps `subject` and wait for its acknowledgement."""
        all_headers = {**(headers or {}), "Nats-Msg-Id": message_id}
        self._refuse_too_large(subject, payload, all_headers)
        full = self.names.absolute(subject)
        try:
            ack = _decode_pub_ack(await self._ask_stream(full, payload, all_headers))
        except nats.errors.NoRespondersError as error:
            raise PublishError(f"no stream keeps {full}") from error
        except nats.errors.TimeoutError as error:
            hint = self._incidents.permission_hint(full)
            raise PublishError(f"{full}: not acknowledged{hint}") from error
        except DeniedError as error:
            text = f"{full}: the server denied it to this user ({reason(error)})"
            raise PublishError(text) from error
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"{full}: {reason(error)}") from error
        except UNDECODABLE as error:
            raise PublishError(f"{full}: somebody answers who is not a stream") from error
        if ack.error is not None:
            is_full = ack.error.err_code in LIMIT_ERROR_CODES
            kind = StreamFullError if is_full else PublishError
            raise kind(f"{full}: {ack.error.description}")
        if not ack.stream:
            raise PublishError(f"{full}: somebody answers who is not a stream")
        if ack.duplicate:
            self.counters["duplicates_total"] += 1

    async def _ask_stream(self, full: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        # What was written to a dying connection is gone without a word. Sending it again is
        # harmless: its message id makes the second copy a duplicate.
        deadline = time.monotonic() + ACK_DEADLINE_SECONDS
        while True:
            try:
                return (await self._client.ask(full, payload, headers, ACK_TRY_SECONDS)).payload
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                # Right after a server's start its streams are not there yet.
                if time.monotonic() + ACK_TRY_SECONDS > deadline or not self._recovering():
                    raise
                await asyncio.sleep(0.05)

    def _recovering(self) -> bool:
        if not self._client.is_connected or self._disconnected_at is None:
            return not self._client.is_connected
        return time.monotonic() - self._disconnected_at < ACK_DEADLINE_SECONDS

    def _refuse_too_large(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None
    ) -> None:
        # The server would close the connection.
        size = size_on_wire(payload, headers or {})
        if size > self._client.max_payload > 0:
            self.counters["refused_too_large_total"] += 1
            raise TooLargeError(
                f"{subject}: {size} bytes with headers exceed the server's limit of "
                f"{self._client.max_payload}"
            )
