"""A durable work-queue consumer: pull, explicit acknowledgement, dead letters.

nats-py's `fetch(n)` waits for all `n` messages once it has to wait at all; this one returns as
soon as there is something.
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

import msgspec
import nats.errors
import nats.js.api
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from agent.bus.cancellation import heed
from agent.bus.client import BusClient
from agent.bus.errors import raised_as
from agent.bus.incidents import Incidents
from agent.bus.names import Names
from agent.bus.reader import ack_fields
from schemas.protocols import Delivery, PublishError, TooLargeError

log = structlog.get_logger()

ACK_WAIT_SECONDS = 30.0
ACK_TIMEOUT_SECONDS = 5.0
MAX_ACK_PENDING = 8192
SUBJECTS_BYTES = 4096
RETRY_SECONDS = 0.25
GIVE_BACK_SECONDS = 0.01
CHECK_SECONDS = 5.0
CUT_BYTES = 64 * 1024
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class BusWorkItem:
    """One delivery of a work queue."""

    def __init__(self, queue: "PullQueue", message: Msg) -> None:
        self._queue = queue
        self._message = message
        sequence, _, stored_ns, self._pending = ack_fields(message.reply)
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

    @property
    def pending(self) -> int:
        """How many more waited when it was given out."""
        return self._pending

    @property
    def ack_subject(self) -> str:
        """An empty request there acknowledges it."""
        return self._message.reply

    async def done(self) -> None:
        """Acknowledge and wait for the server's word.

        Raises:
            PublishError: the server did not confirm; the message may come again.
        """
        with raised_as(PublishError, "not confirmed"):
            await self._queue.client.ask(self.ack_subject, b"", {}, ACK_TIMEOUT_SECONDS)

    async def retry(self, delay_seconds: float) -> None:
        """Give it back; it comes again after the delay."""
        with raised_as(PublishError, "not given back"):
            await heed(self._message.nak(delay=delay_seconds))

    async def extend(self) -> None:
        """Restart the 30 s after which it goes to another worker."""
        with raised_as(PublishError, "not extended"):
            await heed(self._message.in_progress())

    async def dead(self, reason: str) -> None:
        """Copy it to the dead-letter stream, with where it came from and why, then settle it."""
        await self._queue.bury(self._message, self._delivery, reason)
        await self.done()


class PullQueue:
    """Pulls from one durable consumer through one subscription.

    A consumer or server that went away and came back is noticed within the wait: the consumer is
    made anew and asked again.
    """

    def __init__(
        self,
        client: BusClient,
        js: JetStreamContext,
        names: Names,
        stream: str,
        consumer: str,
        publish: Callable[[str, bytes, Mapping[str, str], str], Awaitable[None]],
        incidents: Incidents,
    ) -> None:
        self.names = names
        self.client = client
        self._js = js
        self._stream = names.stream(stream)
        self._consumer = consumer
        self._publish = publish
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._incidents = incidents
        self._counters = incidents.counters
        self._is_sure = False
        self._checked_at = time.monotonic()
        self._suspect: tuple[int, int] | None = None
        self._arrived: deque[Msg] = deque()
        self._news = asyncio.Event()
        self._pull = 0
        self._pull_until = 0.0
        self._asked = 0
        self._was_full = False

    async def take(
        self, batch: int, max_bytes: int | None, wait_seconds: float
    ) -> list[BusWorkItem]:
        """Up to `batch` items, as soon as there is one; empty after `wait_seconds` without any.

        The server is asked for so many, of `max_bytes` together, at once; what of them comes later
        is given out by later calls.

        Raises:
            PublishError: the stream does not exist or the server does not answer.
        """
        deadline = time.monotonic() + wait_seconds
        with raised_as(PublishError, self._stream):
            await self._ask(batch, max_bytes, deadline)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    while not self._arrived:
                        await self._news.wait()
                        if not self._arrived and not self._was_full:
                            await asyncio.sleep(RETRY_SECONDS)
                        await self._ask(batch, max_bytes, deadline)
        if not self._arrived:
            await self._check(wait_seconds)
        taken = min(batch, len(self._arrived))
        return [BusWorkItem(self, self._arrived.popleft()) for _ in range(taken)]

    async def _ask(self, batch: int, max_bytes: int | None, deadline: float) -> None:
        self._news.clear()
        if self._arrived:
            return
        await self._open()
        now = time.monotonic()
        if self._asked > 0 and now < self._pull_until:
            return
        self._pull += 1
        self._was_full = False
        self._asked = batch
        self._pull_until = deadline
        body = {"batch": batch, "expires": int(max(deadline - now, 0.01) * 1e9)}
        if max_bytes is not None:
            # The server counts subjects, too; what is larger than this would never come.
            body["max_bytes"] = max(max_bytes, self.client.max_payload + SUBJECTS_BYTES)
        await heed(
            self.client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                msgspec.json.encode(body),
                reply=f"{self._inbox}.{self._pull}",
            )
        )

    async def _open(self) -> None:
        if self._subscription is None:
            await self._add_consumer()
            self._subscription = await heed(
                self.client.subscribe(f"{self._inbox}.*", cb=self._on_message)
            )
        elif not self._is_sure:
            try:
                await heed(self._js.consumer_info(self._stream, self._consumer))
            except nats.js.errors.NotFoundError:
                await self._add_consumer()
        self._is_sure = True

    async def _add_consumer(self) -> None:
        config = nats.js.api.ConsumerConfig(
            name=self._consumer,
            durable_name=self._consumer,
            ack_policy=nats.js.api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=MAX_ACK_PENDING,
            max_deliver=-1,
        )
        await heed(self._js.add_consumer(self._stream, config=config))

    async def _on_message(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status", "")
        if message.reply.startswith("$JS.ACK."):  # work, whatever its headers say
            self._asked -= 1
            self._arrived.append(message)
            self._news.set()
        elif message.subject == f"{self._inbox}.{self._pull}":
            # 404 none, 408 expired, 409 consumer gone, server shutting down, or no more in
            # `max_bytes`, 503 nobody there; for an earlier pull it says nothing about this one.
            self._was_full = "MaxBytes" in (message.headers or {}).get("Description", "")
            self._is_sure = self._is_sure and (self._was_full or status not in ("409", "503"))
            self._pull_until = 0.0
            self._news.set()

    async def take_over(self) -> None:
        """Have all that was given to a consumer that is gone given out anew, at once.

        Otherwise it comes when `ACK_WAIT_SECONDS` are over. Only for who knows that nobody else
        takes from it: what another one is at comes a second time.
        """
        try:
            info = await heed(self._js.consumer_info(self._stream, self._consumer))
        except nats.js.errors.NotFoundError:
            return
        if info.num_ack_pending:
            await heed(self._js.delete_consumer(self._stream, self._consumer))
            self.ask_again_soon()

    async def give_back(self) -> None:
        """Let others have at once what came and was not taken; a later `take` asks anew."""
        subscription, self._subscription = self._subscription, None
        self._pull_until = 0.0
        if subscription is not None:
            # What the server sent before it heard of this has arrived after it.
            await heed(subscription.drain())  # type: ignore[no-untyped-call]
        while self._arrived:
            # Of several given back without a delay, server 2.9.10 forgets one for 30 s.
            await heed(self._arrived.popleft().nak(delay=GIVE_BACK_SECONDS))

    def ask_again_soon(self) -> None:
        """The server has forgotten what it was asked."""
        self._is_sure = False
        self._pull_until = 0.0
        self._news.set()

    async def _check(self, wait_seconds: float) -> None:
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS or not self.client.is_connected:
            return
        self._checked_at = now
        with contextlib.suppress(nats.errors.Error, OSError):
            async with asyncio.timeout(wait_seconds):
                await self._repair_if_stuck()

    async def _repair_if_stuck(self) -> None:
        """Make the consumer anew when it is gone, or the stream holds what it has forgotten.

        A server says nothing to who asks a consumer that was removed. And one killed with -9 can
        come back with a consumer that takes messages for acknowledged whose removal from the
        stream was not written yet (seen on 2.9): nobody would ever get them. A new consumer
        delivers all that is left; what was done comes again.
        """
        state = (await heed(self._js.stream_info(self._stream))).state
        try:
            info = await heed(self._js.consumer_info(self._stream, self._consumer))
        except nats.js.errors.NotFoundError:
            self.ask_again_soon()
            return
        known = int(info.num_pending or 0) + int(info.num_ack_pending or 0)
        if state.messages <= known:
            self._suspect = None
            return
        delivered = int(info.delivered.consumer_seq) if info.delivered else 0
        suspect, self._suspect = self._suspect, (int(state.first_seq), delivered)
        if suspect != self._suspect:
            return  # perhaps just between two looks: ask once more
        log.warning("consumer_made_anew", stream=self._stream, forgotten=state.messages - known)
        self._counters["consumers_made_anew_total"] += 1
        self._suspect = None
        await heed(self._js.delete_consumer(self._stream, self._consumer))
        self.ask_again_soon()

    async def bury(self, message: Msg, delivery: Delivery, reason: str) -> None:
        """Publish a copy to `dead.<stream>.<consumer>` and wait for its acknowledgement.

        It keeps payload and headers, so that it can be sent back, except for headers that the
        server would obey or refuse. One so large that the reason does not fit beside it is cut to
        64 KiB without its headers; `Fleet-Dead-Cut` then says how many bytes it had.
        """
        why = {
            "Fleet-Dead-Reason": quote(reason[:1000], safe=" ", errors="replace"),
            "Fleet-Dead-Subject": quote(message.subject, safe=".*>$/", errors="replace"),
            "Fleet-Dead-Sequence": str(delivery.sequence),
        }
        subject = f"dead.{self._stream}.{self._consumer}"
        message_id = f"{self._stream}:{self._consumer}:{delivery.sequence}"
        payload = delivery.payload
        try:
            await self._publish(subject, payload, {**_own(delivery.headers), **why}, message_id)
        except TooLargeError:
            why["Fleet-Dead-Cut"] = str(len(payload))
            await self._publish(subject, payload[:CUT_BYTES], why, message_id)
        self._counters["dead_letters_total"] += 1
        self._incidents.log_seldom("message_dead", subject=message.subject, error=reason)


def _own(headers: Mapping[str, str]) -> dict[str, str]:
    """The sender's headers without those that speak to the server, or that nobody may send."""
    return {
        name: value
        for name, value in headers.items()
        if _HEADER_NAME.fullmatch(name) and not name.lower().startswith(("nats-", "fleet-dead-"))
    }
