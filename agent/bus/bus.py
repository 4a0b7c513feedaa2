"""What services do over a connection beyond asking: subscribe, serve, read streams, take work."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import cast

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.bus.bucket import KvBucket
from agent.bus.cancellation import heed
from agent.bus.connection import START_DEADLINE_SECONDS
from agent.bus.errors import BusError, raised_as
from agent.bus.names import Names
from agent.bus.peek import first_from
from agent.bus.reader import OrderedReader, read_stream
from agent.bus.requesting import RequestingConnection
from agent.bus.serving import Service
from agent.bus.work import ACK_TIMEOUT_SECONDS, BusWorkItem, PullQueue
from schemas.protocols import (
    Delivery,
    Endpoint,
    PublishError,
    WorkItem,
)

READ_TIMEOUT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds; `max_bytes` -1 = no limit."""

    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    max_bytes: int


class Bus(RequestingConnection):
    """A connection that implements Publisher, Requester, Subscriber and WorkQueue.

    Made by `connect`.
    """

    def __init__(self, url: str, name: str, names: Names, inbox_prefix: str) -> None:
        super().__init__(url, name, names, inbox_prefix)
        self._readers: set[OrderedReader] = set()
        self._services: list[Service] = []
        self._queues: dict[tuple[str, str], PullQueue] = {}
        self._beside: list[Bus] = []

    async def beside(self, purpose: str) -> "Bus":
        """Another connection with the same login, behind whose traffic nothing here has to wait.

        It is closed with this one.

        Raises:
            BusError: as `connect`.
        """
        other = Bus(self.url, f"{self.name}.{purpose}", self.names, self._inbox_prefix)
        await other.open(START_DEADLINE_SECONDS)
        self._beside.append(other)
        return other

    async def abandon(self) -> None:
        """Close at once, with all beside it: whoever waits for the server is told that."""
        await asyncio.gather(super().abandon(), *(other.abandon() for other in self._beside))

    async def close(self) -> None:
        """Drain the services, stop the readers, flush, close. Safe to call twice."""
        for other in self._beside:
            await other.close()
        self._beside.clear()
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

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Callable[[], Awaitable[None]]:
        """Call `on_message` for each core message; a failing one is counted and skipped.

        Raises:
            BusError: the connection is closed, the subject is not one, or the server denies it.
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
        denial = self.denial(full)
        if "subscription" in denial:
            await subscription.unsubscribe()
            raise BusError(f"cannot subscribe to {full}{denial}")

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
        on_delivery: Callable[[Delivery], Awaitable[None] | None],
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        """Read `stream` in order for ever; see Subscriber."""

        def deliver(delivery: Delivery, _pending: int) -> Awaitable[None] | None:
            try:
                waiting = on_delivery(delivery)
            except Exception as error:
                self._incidents.count_bad_message(delivery.subject, error)
                return None
            return None if waiting is None else finish(delivery, waiting)

        async def finish(delivery: Delivery, waiting: Awaitable[None]) -> None:
            try:
                await waiting
            except Exception as error:
                self._incidents.count_bad_message(delivery.subject, error)

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
        try:
            with raised_as(PublishError, f"stream {name}"):
                info = await heed(self._js.stream_info(name))
        except PublishError as error:
            hint = self._incidents.permission_hint(f"$JS.API.STREAM.INFO.{name}")
            raise PublishError(f"{error}{hint}") from error
        return StreamState(
            # A stream never written to says 0 and 0; empty is first > last.
            first_sequence=max(1, int(info.state.first_seq)),
            last_sequence=int(info.state.last_seq),
            messages=int(info.state.messages),
            bytes=int(info.state.bytes),
            max_bytes=int(info.config.max_bytes or -1),
        )

    async def read_last(self, stream: str, subject: str) -> bytes | None:
        """Payload of the newest message on `subject`, by direct get; see PartStream."""
        name, full = self.names.stream(stream), self.names.absolute(subject)
        asked = f"$JS.API.DIRECT.GET.{name}.{full}"
        with raised_as(PublishError, f"stream {name}"):
            answer = await self._client.ask(asked, b"", {}, READ_TIMEOUT_SECONDS)
        status = answer.headers.get("Status")
        if status is not None and status != "404":
            raise PublishError(f"stream {name}: {answer.headers.get('Description', status)}")
        return answer.payload if status is None else None

    async def purge(self, stream: str, subject: str) -> None:
        """Remove all messages on `subject`; see PartStream."""
        name, full = self.names.stream(stream), self.names.absolute(subject)
        with raised_as(PublishError, f"stream {name}"):
            await heed(self._js.purge_stream(name, subject=full))

    async def count(self, stream: str, subject: str) -> int:
        """How many messages are there on subjects that match; see LetterStream."""
        name, full = self.names.stream(stream), self.names.absolute(subject)
        with raised_as(PublishError, f"stream {name}"):
            info = await heed(self._js.stream_info(name, subjects_filter=full))
        return sum((info.state.subjects or {}).values())

    async def remove(self, stream: str, sequence: int) -> None:
        """Remove one message; see LetterStream."""
        name = self.names.stream(stream)
        with raised_as(PublishError, f"stream {name}"):
            await heed(self._js.delete_msg(name, sequence))

    async def take(
        self,
        stream: str,
        consumer: str,
        *,
        batch: int,
        wait_seconds: float,
        max_bytes: int | None = None,
    ) -> Sequence[WorkItem]:
        """Items of a work queue; see WorkQueue."""
        return await self._queue(stream, consumer).take(batch, max_bytes, wait_seconds)

    async def done_all(self, items: Sequence[WorkItem]) -> bool:
        """Acknowledge items together; see WorkQueue."""
        if not items:
            return True
        *others, last = [cast(BusWorkItem, item).ack_subject for item in items]
        try:
            for subject in others:
                if not self._client.answer(subject, b"", {}):
                    await self._client.publish(subject)
            # The server takes what one connection sends in order: with the last it has them all.
            await self._client.ask(last, b"", {}, ACK_TIMEOUT_SECONDS)
        except (nats.errors.Error, OSError):
            return False
        return True

    async def depth(self, stream: str) -> int:
        """How many messages `stream` holds now."""
        return (await self.stream_state(stream)).messages

    async def first_from(self, stream: str, subject: str, sequence: int) -> tuple[int, int] | None:
        """The first message on `subject` from `sequence` on; see WorkQueue."""
        name, full = self.names.stream(stream), self.names.absolute(subject)
        with raised_as(PublishError, f"stream {name}"):
            return await first_from(self._client, name, full, sequence)

    async def take_over(self, stream: str, consumer: str) -> None:
        """Have what was in flight given out anew; see WorkQueue."""
        with raised_as(PublishError, f"stream {self.names.stream(stream)}"):
            await self._queue(stream, consumer).take_over()

    async def give_back(self, stream: str, consumer: str) -> None:
        """Let others have what was asked for and not taken; see WorkQueue."""
        with raised_as(PublishError, f"stream {self.names.stream(stream)}"):
            await self._queue(stream, consumer).give_back()

    def _queue(self, stream: str, consumer: str) -> PullQueue:
        queue = self._queues.get((stream, consumer))
        if queue is None:
            queue = PullQueue(
                self._client,
                self._js,
                self.names,
                stream,
                consumer,
                self._publish_dead,
                self._incidents,
            )
            self._queues[stream, consumer] = queue
        return queue

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
