"""What services do over a connection: publish, request, subscribe, serve, read streams."""

import asyncio
import contextlib
import dataclasses
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
import nats.errors
import nats.js.api
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.bus.bucket import KvBucket
from agent.bus.cancellation import heed
from agent.bus.client import size_on_wire
from agent.bus.connection import Connection
from agent.bus.errors import BusError, raised_as
from agent.bus.names import Names
from agent.bus.reader import OrderedReader, read_stream
from agent.bus.serving import Service
from agent.bus.work import PullQueue
from schemas.message import Message
from schemas.protocols import (
    Answer,
    Delivery,
    Endpoint,
    PublishError,
    RequestError,
    StreamFullError,
    TooLargeError,
    WorkItem,
)

START_DEADLINE_SECONDS = 5.0
ACK_DEADLINE_SECONDS = 5.0
ACK_TRY_SECONDS = 1.5
LIMIT_ERROR_CODES = frozenset({10077, 10047, 10023, 10122})
"""Server codes for no room: too many messages or bytes, no resources, no storage."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds; `max_bytes` -1 = no limit."""

    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    max_bytes: int


class Bus(Connection):
    """A connection that implements Publisher, Requester, Subscriber and WorkQueue.

    Made by `connect`. While disconnected, messages that are not durable are dropped and counted
    (a late metric would look like a new one); durable ones wait for the acknowledgement until
    their deadline and then raise PublishError.
    """

    def __init__(self, url: str, name: str, names: Names, inbox_prefix: str) -> None:
        super().__init__(url, name, inbox_prefix)
        self.names = names
        self._readers: set[OrderedReader] = set()
        self._services: list[Service] = []
        self._queues: dict[tuple[str, str], PullQueue] = {}

    async def close(self) -> None:
        """Drain the services, stop the readers, flush, close. Safe to call twice."""
        for service in self._services:
            await service.stop()
        self._services.clear()
        for reader in list(self._readers):
            await reader.stop()
        self._readers.clear()
        await super().close()

    def came_back(self) -> None:
        """Make the readers' consumers anew, and ask for work again."""
        for reader in list(self._readers):
            reader.restart_soon()
        for queue in self._queues.values():
            queue.ask_again_soon()

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
            self._incidents.log_seldom("publish_dropped", subject=subject, error=str(error))

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
            ack = await self._publish_until_acknowledged(full, payload, all_headers)
        except nats.js.errors.APIError as error:
            if error.err_code in LIMIT_ERROR_CODES:
                raise StreamFullError(f"{full}: {error.description}") from error
            raise PublishError(f"{full}: {error.description}") from error
        except nats.js.errors.NoStreamResponseError as error:
            raise PublishError(f"no stream keeps {full}") from error
        except nats.errors.TimeoutError as error:
            hint = self._incidents.permission_hint(full)
            raise PublishError(f"{full}: not acknowledged{hint}") from error
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"{full}: {error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise PublishError(f"{full}: somebody answers who is not a stream") from error
        if ack.duplicate:
            self.counters["duplicates_total"] += 1

    async def _publish_until_acknowledged(
        self, full: str, payload: bytes, headers: dict[str, str]
    ) -> nats.js.api.PubAck:
        # What was written to a dying connection is gone without a word. Sending it again is
        # harmless: its message id makes the second copy a duplicate.
        deadline = time.monotonic() + ACK_DEADLINE_SECONDS
        while True:
            try:
                return await heed(
                    self._js.publish(full, payload, headers=headers, timeout=ACK_TRY_SECONDS)
                )
            except (nats.errors.TimeoutError, nats.js.errors.NoStreamResponseError):
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

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        """Ask `subject` (below the root); an error answer is raised as RequestError."""
        return await self.request_absolute(
            self.names.absolute(subject), payload, headers, timeout_seconds=timeout_seconds
        )

    async def request_absolute(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        """Like `request`, for a subject outside the root (`$SRV.PING`)."""
        try:
            self._refuse_too_large(subject, payload, headers)
        except TooLargeError as error:
            raise RequestError(413, str(error)) from None
        try:
            message = await heed(
                self._client.request(
                    subject,
                    payload,
                    timeout=timeout_seconds,
                    headers=dict(headers) if headers else None,
                )
            )
        except nats.errors.NoRespondersError:
            raise RequestError(503, f"nobody serves {subject}") from None
        except nats.errors.TimeoutError:
            hint = self._incidents.permission_hint(subject)
            raise RequestError(
                408, f"no answer from {subject} within {timeout_seconds:g} s{hint}"
            ) from None
        except (nats.errors.Error, OSError) as error:
            raise RequestError(503, f"{subject}: {error}") from error
        answer = Answer(message.data, message.headers or {})
        text = answer.headers.get("Nats-Service-Error")
        if text is not None:
            code = answer.headers.get("Nats-Service-Error-Code", "500")
            raise RequestError(int(code) if code.isdigit() else 500, text)
        return answer

    async def gather(
        self, subject: str, *, wait_seconds: float, payload: bytes = b""
    ) -> list[Answer]:
        """All answers to one request on an absolute subject that arrive within `wait_seconds`.

        Raises:
            BusError: the connection is closed, or the subject is not one.
        """
        inbox = self._client.new_inbox()
        answers: list[Answer] = []

        async def collect(message: Msg) -> None:
            if (message.headers or {}).get("Status") != "503":
                answers.append(Answer(message.data, message.headers or {}))

        with raised_as(BusError, f"cannot ask {subject}"):
            subscription = await self._client.subscribe(inbox, cb=collect)
            try:
                await heed(self._client.publish(subject, payload, reply=inbox))
                await asyncio.sleep(wait_seconds)
            finally:
                await subscription.unsubscribe()
        return answers

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Callable[[], Awaitable[None]]:
        """Call `on_message` for each core message; a failing one is counted and skipped.

        Raises:
            BusError: the connection is closed, or the subject is not one.
        """
        full = self.names.absolute(subject)

        async def deliver(message: Msg) -> None:
            try:
                on_message(self.names.relative(message.subject), message.data)
            except Exception as error:
                self._incidents.count_bad_message(full, error)

        with raised_as(BusError, f"cannot subscribe to {full}"):
            subscription = await self._client.subscribe(full, cb=deliver)
            await heed(self._client.settle())

        async def unsubscribe() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return unsubscribe

    async def serve(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        *,
        description: str,
        metadata: Mapping[str, str] | None = None,
        service: Service | None = None,
    ) -> Service:
        """Serve `endpoints` as the ADR-32 service `<name>`; `Service.stop` drains it.

        With `service`, the endpoints are added to one that already runs.

        Raises:
            BusError: the connection is closed.
        """
        if service is None:
            service = Service(
                self._client,
                self.names,
                name,
                description=description,
                metadata=metadata or {},
                on_bad_message=self._incidents.count_bad_message,
            )
            await service.start()
            self._services.append(service)
        await service.add(endpoints)
        return service

    async def follow(
        self,
        stream: str,
        on_delivery: Callable[[Delivery], None],
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        """Read `stream` in order for ever; see Subscriber."""

        def deliver(delivery: Delivery, _pending: int) -> None:
            try:
                on_delivery(delivery)
            except Exception as error:
                self._incidents.count_bad_message(f"{stream} {subject}", error)

        reader = OrderedReader(
            self._client,
            self._js,
            self.names,
            stream,
            subject=subject,
            deliver=deliver,
            start_sequence=start_sequence,
            start_ns=start_ns,
            last_per_subject=last_per_subject,
            counters=self.counters,
        )
        self._readers.add(reader)
        try:
            await reader.start()
        except BaseException:
            self._readers.discard(reader)
            raise

        async def stop() -> None:
            self._readers.discard(reader)
            await reader.stop()

        return stop

    async def read(
        self,
        stream: str,
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> AsyncGenerator[Delivery, None]:
        """What `stream` holds now, in order; see Subscriber."""
        deliveries = read_stream(
            self._client,
            self._js,
            self.names,
            stream,
            subject,
            start_sequence=start_sequence,
            start_ns=start_ns,
            end_ns=end_ns,
            last_per_subject=last_per_subject,
            counters=self.counters,
        )
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                yield delivery

    async def stream_bounds(self, stream: str) -> tuple[int, int]:
        """First and last sequence of `stream` (name below the prefix)."""
        state = await self.stream_state(stream)
        return state.first_sequence, state.last_sequence

    async def stream_state(self, stream: str) -> StreamState:
        """What `stream` (name below the prefix) holds now.

        Raises:
            PublishError: there is no such stream, or the server does not answer.
        """
        name = self.names.stream(stream)
        with raised_as(PublishError, f"stream {name}"):
            info = await heed(self._js.stream_info(name))
        return StreamState(
            # A stream never written to says 0 and 0; empty is first > last.
            first_sequence=max(1, int(info.state.first_seq)),
            last_sequence=int(info.state.last_seq),
            messages=int(info.state.messages),
            bytes=int(info.state.bytes),
            max_bytes=int(info.config.max_bytes or -1),
        )

    async def take(
        self, stream: str, consumer: str, *, batch: int, wait_seconds: float
    ) -> Sequence[WorkItem]:
        """Items of a work queue; see WorkQueue."""
        queue = self._queues.get((stream, consumer))
        if queue is None:
            queue = PullQueue(
                self._client,
                self._js,
                self.names,
                stream,
                consumer,
                self._publish_dead,
                self.counters,
            )
            self._queues[stream, consumer] = queue
        return await queue.take(batch, wait_seconds)

    async def _publish_dead(
        self, subject: str, payload: bytes, headers: Mapping[str, str], message_id: str
    ) -> None:
        await self.publish_raw(subject, payload, headers, message_id=message_id)

    def bucket(self, name: str) -> KvBucket:
        """The bucket `name` (`registry` → `fleet-registry`)."""

        def read_last(stream: str, subject: str) -> AsyncGenerator[Delivery, None]:
            return self.read(stream, subject=subject, last_per_subject=True)

        return KvBucket(self._js, self.names.bucket(name), read_last)

    @property
    def jetstream(self) -> JetStreamContext:
        """nats-py's JetStream context, for this package's own modules."""
        return self._js


async def connect(
    url: str,
    *,
    name: str,
    root: str = "fleet.v1",
    deadline_seconds: float = START_DEADLINE_SECONDS,
) -> Bus:
    """Connect to `url` as `name`.

    Raises:
        BusError: not within the deadline, or the login was refused; the text names URL and user.
    """
    # Who logs in gets an inbox that guests may not read. A guest may read only the common one.
    inbox = "_INBOX"
    if urlsplit(url).username:
        inbox = f"_INBOX_{re.sub('[^A-Za-z0-9_-]', '_', name)}_{random.getrandbits(48):012x}"
    bus = Bus(url, name, Names(root), inbox)
    await bus.open(deadline_seconds)
    return bus
