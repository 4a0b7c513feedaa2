"""A durable work-queue consumer: pull, explicit acknowledgement, dead letters.

nats-py's `fetch(n)` waits for all `n` messages once it has to wait at all; this one returns as
soon as there is something.
"""

import asyncio
import contextlib
import time
from collections import Counter
from urllib.parse import quote

import msgspec
import nats.errors
import nats.js.api
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.bus.cancellation import heed
from agent.bus.names import Names
from agent.bus.reader import ack_fields
from schemas.protocols import Delivery, PublishError

log = structlog.get_logger()

ACK_WAIT_SECONDS = 30.0
ACK_TIMEOUT_SECONDS = 5.0
MAX_ACK_PENDING = 256
CHECK_SECONDS = 5.0


class BusWorkItem:
    """One delivery of a work queue."""

    def __init__(self, queue: "PullQueue", message: Msg) -> None:
        self._queue = queue
        self._message = message
        sequence, _, stored_ns, _ = ack_fields(message.reply)
        self._delivery = Delivery(
            queue.names.relative(message.subject),
            message.data,
            message.headers or {},
            sequence,
            stored_ns,
        )

    @property
    def delivery(self) -> Delivery:
        """The message."""
        return self._delivery

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""
        return int(self._message.metadata.num_delivered or 1)

    async def done(self) -> None:
        """Acknowledge and wait for the server's word.

        Raises:
            PublishError: the server did not confirm; the message may come again.
        """
        try:
            await heed(self._message.ack_sync(timeout=ACK_TIMEOUT_SECONDS))
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"not confirmed: {error}") from error

    async def retry(self, delay_seconds: float) -> None:
        """Give it back; it comes again after the delay."""
        try:
            await self._message.nak(delay=delay_seconds)
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"not given back: {error}") from error

    async def extend(self) -> None:
        """Restart the 30 s after which it goes to another worker."""
        try:
            await self._message.in_progress()
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"not extended: {error}") from error

    async def dead(self, reason: str) -> None:
        """Copy it to the dead-letter stream, with where it came from and why, then settle it."""
        await self._queue.bury(self._message, self._delivery, reason)
        await self.done()


class PullQueue:
    """Pulls from one durable consumer through one subscription."""

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        names: Names,
        stream: str,
        consumer: str,
        counters: Counter[str],
    ) -> None:
        self.names = names
        self._client = client
        self._js = js
        self._stream = names.stream(stream)
        self._consumer = consumer
        self._inbox = client.new_inbox()
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._pull_until = 0.0
        self._asked = 0
        self._open = False
        self._listening = False
        self._counters = counters
        self._checked_at = time.monotonic()
        self._suspect: tuple[int, int] | None = None

    async def _ensure_open(self) -> None:
        if self._open:
            return
        config = nats.js.api.ConsumerConfig(
            name=self._consumer,
            durable_name=self._consumer,
            ack_policy=nats.js.api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=MAX_ACK_PENDING,
            max_deliver=-1,
        )
        await heed(self._js.add_consumer(self._stream, config=config))
        if not self._listening:
            await self._client.subscribe(self._inbox, cb=self._on_message)
            self._listening = True
        self._open = True

    async def _on_message(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is None:
            self._asked -= 1
            self._queue.put_nowait(message)
            return
        # 404 none, 408 expired, 409 consumer gone or server shutting down, 503 nobody there
        self._pull_until = 0.0
        if status == "409":
            self._open = False

    async def take(self, batch: int, wait_seconds: float) -> list[BusWorkItem]:
        """Up to `batch` items, as soon as there is one; empty after `wait_seconds` without any.

        Raises:
            PublishError: the stream does not exist or the server does not answer.
        """
        try:
            await self._ensure_open()
            now = time.monotonic()
            if self._queue.empty() and (self._asked <= 0 or now >= self._pull_until):
                self._asked = batch
                self._pull_until = now + wait_seconds
                body = {"batch": batch, "expires": int(max(wait_seconds, 0.01) * 1e9)}
                await self._client.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                    msgspec.json.encode(body),
                    reply=self._inbox,
                )
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"{self._stream}: {error}") from error
        messages: list[Msg] = []
        try:
            async with asyncio.timeout(wait_seconds):
                messages.append(await self._queue.get())
        except TimeoutError:
            await self._repair_if_stuck()
            return []
        while len(messages) < batch and not self._queue.empty():
            messages.append(self._queue.get_nowait())
        return [BusWorkItem(self, message) for message in messages]

    async def _repair_if_stuck(self) -> None:
        """Make the consumer anew when the stream holds messages it has forgotten.

        A nats-server killed with -9 can come back with a consumer that takes messages for
        acknowledged whose removal from the stream was not written yet (seen on 2.9): nobody would
        ever get them. A new consumer delivers all that is left; what was done comes again.
        """
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        with contextlib.suppress(nats.errors.Error, OSError):
            state = (await heed(self._js.stream_info(self._stream))).state
            info = await heed(self._js.consumer_info(self._stream, self._consumer))
            known = int(info.num_pending or 0) + int(info.num_ack_pending or 0)
            delivered = int(info.delivered.consumer_seq) if info.delivered else 0
            if state.messages <= known:
                self._suspect = None
                return
            suspect, self._suspect = self._suspect, (int(state.first_seq), delivered)
            if suspect != self._suspect:
                return  # perhaps just between two looks: ask once more
            log.warning("consumer_made_anew", stream=self._stream, forgotten=state.messages - known)
            self._counters["consumers_made_anew_total"] += 1
            self._suspect = None
            self._open = False
            await heed(self._js.delete_consumer(self._stream, self._consumer))
            await self._ensure_open()

    async def bury(self, message: Msg, delivery: Delivery, reason: str) -> None:
        """Publish a copy to `dead.<stream>.<consumer>` and wait for its acknowledgement."""
        # Original headers travel along so that the message can be sent back as it was.
        headers = {k: v for k, v in delivery.headers.items() if k != "Nats-Msg-Id"}
        headers |= {
            "Fleet-Dead-Reason": quote(reason[:1000], safe=" "),
            "Fleet-Dead-Subject": message.subject,
            "Fleet-Dead-Sequence": str(delivery.sequence),
            "Nats-Msg-Id": f"{self._stream}:{self._consumer}:{delivery.sequence}",
        }
        subject = self.names.absolute(f"dead.{self._stream}.{self._consumer}")
        try:
            await heed(
                self._js.publish(
                    subject, delivery.payload, headers=headers, timeout=ACK_TIMEOUT_SECONDS
                )
            )
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise PublishError(f"{subject}: {error}") from error
        log.error("message_dead", stream=self._stream, sequence=delivery.sequence, reason=reason)
