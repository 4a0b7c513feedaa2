"""Reads a stream in order: every message once, through gaps, restarts and a server's return.

nats-py's own ordered consumer starts again at sequence 1 when it has to recover before its first
message, and gives up when the recovery itself fails; hence this one.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

import nats.errors
import nats.js.api
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from agent.bus.cancellation import heed
from agent.bus.errors import raised_as
from agent.bus.names import Names
from schemas.protocols import Delivery, PublishError

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 3.0
RETRY_SECONDS = 0.25
READ_STALL_SECONDS = 10.0
_ACK_TOKENS = 9


def ack_fields(reply: str) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, timestamp in ns and messages pending of a delivery.

    Reads `$JS.ACK.<stream>.<consumer>.<tries>.<sseq>.<cseq>.<ns>.<pending>` and the longer form
    with domain and account hash in front of the stream (ADR-15; default from server 2.15 on).
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) == _ACK_TOKENS else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at + 3])


class OrderedReader:
    """Follows one stream with an ephemeral push consumer that it renews whenever it must.

    `deliver(delivery, pending)` may return an awaitable; the next message then waits for it, and
    flow control holds the server back.
    """

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        names: Names,
        stream: str,
        *,
        subject: str,
        deliver: Callable[[Delivery, int], Awaitable[None] | None],
        start_sequence: int | None,
        start_ns: int | None,
        last_per_subject: bool,
        counters: Counter[str],
        on_idle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._js = js
        self._names = names
        self._stream = names.stream(stream)
        # A bucket's stream has subjects of its own, outside the root.
        self._filter = subject if stream.startswith("KV_") else names.absolute(subject)
        self._deliver = deliver
        self._next = start_sequence
        self._start_ns = start_ns
        self._last_per_subject = last_per_subject
        self._counters = counters
        self._on_idle = on_idle
        self._expected = 1
        self._subscription: Subscription | None = None
        self._consumer: str | None = None
        self._heard = asyncio.Event()
        self._restart = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self.pending_at_start = 0

    async def start(self) -> None:
        """Begin to read.

        Raises:
            PublishError: the stream does not exist or the server does not answer.
        """
        try:
            with raised_as(PublishError, f"cannot read stream {self._stream}"):
                if self._next is None and self._start_ns is None and not self._last_per_subject:
                    state = (await heed(self._js.stream_info(self._stream))).state
                    self._next = int(state.last_seq) + 1
                await self._create()
        except BaseException:
            await self._leave()
            raise
        self._watch = asyncio.create_task(self._keep_alive())

    async def stop(self) -> None:
        """Stop reading and remove the consumer."""
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._leave()

    def restart_soon(self) -> None:
        """Renew the consumer now: the server was away and has forgotten it."""
        self._restart.set()

    async def _create(self) -> None:
        config = nats.js.api.ConsumerConfig(
            ack_policy=nats.js.api.AckPolicy.NONE,
            max_deliver=1,
            flow_control=True,
            idle_heartbeat=HEARTBEAT_SECONDS,
            mem_storage=True,
            num_replicas=1,
            filter_subject=self._filter,
            deliver_subject=self._client.new_inbox(),
        )
        if self._next is not None:
            last = int((await heed(self._js.stream_info(self._stream))).state.last_seq)
            if last < self._next - 1:
                # It was deleted and made anew: with the old number we would hear nothing.
                log.warning("stream_made_anew", stream=self._stream, last_sequence=last)
                self._counters["streams_made_anew_total"] += 1
                self._next = 1
            config.deliver_policy = nats.js.api.DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = max(1, self._next)
        elif self._start_ns is not None:
            config.deliver_policy = nats.js.api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = datetime.fromtimestamp(self._start_ns / 1e9, UTC)
        else:
            config.deliver_policy = nats.js.api.DeliverPolicy.LAST_PER_SUBJECT
        self._expected = 1
        assert config.deliver_subject is not None  # noqa: S101 - set above
        self._subscription = await heed(
            self._client.subscribe(config.deliver_subject, cb=self._callback())
        )
        info = await heed(self._js.add_consumer(self._stream, config=config))
        self._consumer = info.name
        self.pending_at_start = int(info.num_pending or 0)

    async def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, None
        with contextlib.suppress(nats.errors.Error, OSError):
            if subscription is not None:
                await subscription.unsubscribe()
            if consumer is not None and self._client.is_connected:
                await heed(self._js.delete_consumer(self._stream, consumer))

    def _callback(self) -> Callable[[Msg], Awaitable[None]]:
        owner = object()
        self._owner = owner

        async def on_message(message: Msg) -> None:
            if self._owner is owner and not self._restart.is_set():
                await self._take(message)

        return on_message

    async def _take(self, message: Msg) -> None:
        self._heard.set()
        headers = message.headers or {}
        if not message.reply.startswith("$JS.ACK."):  # a control message, whatever headers say
            answer_to = message.reply or headers.get("Nats-Consumer-Stalled")
            if answer_to:
                await self._client.publish(answer_to)
            elif int(headers.get("Nats-Last-Consumer", self._expected - 1)) >= self._expected:
                self._restart.set()
            elif self._on_idle is not None:
                await self._on_idle()
            return
        sequence, consumer_sequence, stored_ns, pending = ack_fields(message.reply)
        if consumer_sequence != self._expected:
            self._restart.set()
            return
        self._expected += 1
        waiting = self._deliver(
            Delivery(
                self._names.relative(message.subject), message.data, headers, sequence, stored_ns
            ),
            pending,
        )
        if waiting is not None:
            await waiting
        self._next = sequence + 1

    async def _keep_alive(self) -> None:
        while True:
            self._heard.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._restart.wait()
            if self._heard.is_set() and not self._restart.is_set():
                continue
            if not self._client.is_connected:
                # Waiting for `_restart` alone would not suspend while it is set.
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._restart.set()
            self._counters["reader_restarts_total"] += 1
            await self._leave()
            try:
                # Cleared first: a message of the new consumer may come before its reply.
                self._restart.clear()
                await self._create()
            except (nats.errors.Error, OSError) as error:
                log.warning("reader_restart_failed", stream=self._stream, error=str(error))
                self._restart.set()
                await asyncio.sleep(RETRY_SECONDS)


async def read_stream(
    client: Client,
    js: JetStreamContext,
    names: Names,
    stream: str,
    subject: str,
    *,
    start_sequence: int | None,
    start_ns: int | None,
    end_ns: int | None,
    last_per_subject: bool,
    counters: Counter[str],
) -> AsyncGenerator[Delivery, None]:
    """Everything that matches now, in order; ends at `end_ns` or at the last message.

    Raises:
        PublishError: the stream does not exist, or the server stopped answering.
    """
    queue: asyncio.Queue[tuple[Delivery, int] | None] = asyncio.Queue(maxsize=512)

    async def put(delivery: Delivery, pending: int) -> None:
        await queue.put((delivery, pending))

    async def end() -> None:
        # The server has nothing left, whatever it said was pending: that can have expired since.
        await queue.put(None)

    if start_sequence is None and start_ns is None and not last_per_subject:
        start_sequence = 1
    reader = OrderedReader(
        client,
        js,
        names,
        stream,
        subject=subject,
        deliver=put,
        on_idle=end,
        start_sequence=start_sequence,
        start_ns=start_ns,
        last_per_subject=last_per_subject,
        counters=counters,
    )
    await reader.start()
    try:
        if reader.pending_at_start == 0 and queue.empty():
            return
        while True:
            try:
                async with asyncio.timeout(READ_STALL_SECONDS):
                    item = await queue.get()
            except TimeoutError:
                raise PublishError(f"reading stream {names.stream(stream)} stalled") from None
            if item is None:
                return
            delivery, pending = item
            if end_ns is not None and delivery.stored_ns > end_ns:
                return
            yield delivery
            if pending == 0:
                return
    finally:
        await reader.stop()
