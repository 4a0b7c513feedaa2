"""What a service and the bus may ask of each other. The bus implements these; services use them."""

import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from schemas.message import UNDECODABLE, Message

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=msgspec.Struct)


class RequestError(Exception):
    """A request that was answered with an error (ADR-32 headers), or raised to answer with one.

    `code`: 400 malformed, 404 unknown, 408 no answer in time, 409 version conflict, 413 too large,
    429 busy, 503 not ready or nobody there, 500 ours. `text` is read by a stranger: no internals.
    `retry_after_seconds`: when it is worth asking again (header `Fleet-Retry-After`); None = not
    said.
    """

    def __init__(self, code: int, text: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text
        self.retry_after_seconds = retry_after_seconds


def busy(text: str, retry_after_seconds: float = 0.5) -> RequestError:
    """A 429 to raise, which always says when to ask again: most of what is full is free soon."""
    return RequestError(429, text, retry_after_seconds=retry_after_seconds)


class PublishError(RuntimeError):
    """A publication was not acknowledged: no server, no stream, no permission, or too large."""


class StreamFullError(PublishError):
    """The stream has `discard new` and is at its limit."""


class TooLargeError(PublishError):
    """A publication exceeds the server's `max_payload`: sending it again is useless."""


class RevisionConflictError(RuntimeError):
    """A compare-and-set on a bucket lost: the key has another revision."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request as it reaches an endpoint. `subject` stands below the root."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A reply: payload and headers."""

    payload: bytes = b""
    headers: Mapping[str, str] = {}


HandleCall: TypeAlias = Callable[[Call], "Answer | Awaitable[Answer]"]


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One request/reply endpoint.

    `handle` answers at once by returning an Answer, or returns an awaitable that the bus runs in
    a task of its own (bounded; over the bound: 429). It raises RequestError to answer with an
    error. `subject` stands below the root and may hold `*`. `queue` None = the service's name.
    What `statistics` gives stands in `data` of the endpoint's ADR-32 statistics.
    """

    name: str
    subject: str
    handle: HandleCall
    queue: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    request_type: type[msgspec.Struct] | None = None
    reply_type: type[msgspec.Struct] | None = None
    statistics: Callable[[], Mapping[str, Any]] = dict


def json_endpoint(
    name: str,
    subject: str,
    request_type: type[RequestT],
    handle: Callable[[RequestT, Call], "msgspec.Struct | Awaitable[msgspec.Struct]"],
    *,
    reply_type: type[msgspec.Struct] | None = None,
    queue: str | None = None,
    statistics: Callable[[], Mapping[str, Any]] = dict,
) -> Endpoint:
    """An endpoint that decodes `request_type` (empty payload = defaults) and encodes the reply.

    A body that does not decode is answered with 400 and msgspec's text, which names the field.
    """
    decoder = msgspec.json.Decoder(request_type)

    def run(call: Call) -> "Answer | Awaitable[Answer]":
        try:
            request = decoder.decode(call.payload.strip() or b"{}")
        except UNDECODABLE as error:
            raise RequestError(400, f"bad request for {name}: {error}") from error
        result = handle(request, call)
        if isinstance(result, msgspec.Struct):
            return Answer(msgspec.json.encode(result))
        return _encode_later(result)

    return Endpoint(
        name,
        subject,
        run,
        queue=queue,
        request_type=request_type,
        reply_type=reply_type,
        statistics=statistics,
    )


async def _encode_later(result: Awaitable[msgspec.Struct]) -> Answer:
    return Answer(msgspec.json.encode(await result))


class Publisher(Protocol):
    """Publishes. A DURABLE message returns once its stream acknowledged it, else at once."""

    async def publish(self, message: Message, *, message_id: str | None = None) -> None:
        """Publish `message` on its own subject.

        Raises:
            PublishError: a durable message was not acknowledged (StreamFullError: no room).
        """

    async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Publish DURABLE messages, each with its message id, together.

        Raises:
            PublishError: of one or more it is not known whether their stream has them.
        """

    async def publish_raw(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        message_id: str,
    ) -> None:
        """Publish bytes on `subject` (below the root) and wait for the stream's acknowledgement.

        Raises:
            PublishError: not acknowledged (StreamFullError: no room).
        """


class PartStream(Protocol):
    """A stream of which single messages are read and removed by their subject."""

    async def read_last(self, stream: str, subject: str) -> bytes | None:
        """Payload of the newest message on `subject` (below the root); None: there is none.

        Raises:
            PublishError: the server does not answer.
        """

    async def purge(self, stream: str, subject: str) -> None:
        """Remove all messages on `subject`, which may hold `*`.

        Raises:
            PublishError: the server does not answer, or this user may not.
        """


class Requester(Protocol):
    """Asks other services."""

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        """Ask `subject` (below the root) and return the answer.

        Raises:
            RequestError: the answer is an error; 503 nobody listens; 408 no answer in time.
        """


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message read from a stream; `subject` below the root, `stored_ns` the stream's clock."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    sequence: int
    stored_ns: int


class Subscriber(Protocol):
    """Listens to core messages and reads streams in order."""

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Callable[[], Awaitable[None]]:
        """Call `on_message(subject below the root, payload)` for each; returns the unsubscriber.

        What `on_message` raises is counted and logged, and the subscription lives on.
        """

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
        """Read `stream` (name below the prefix) in order, for ever; returns the unsubscriber.

        Without a start, only new messages. Gaps and a server's return are handled: no message
        is skipped or repeated while the stream still holds it. Where `on_delivery` gives an
        awaitable, the next message waits for it; one cut off in it comes again.
        """

    def read(
        self,
        stream: str,
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> AsyncGenerator[Delivery, None]:
        """What `stream` holds now, in order, and then stops. Who stops earlier closes it."""

    async def stream_bounds(self, stream: str) -> tuple[int, int]:
        """First and last sequence of `stream` now; first > last when it is empty."""


class StreamState(Protocol):
    """What a stream holds; `max_bytes` -1 = no limit."""

    @property
    def messages(self) -> int:
        """How many."""

    @property
    def bytes(self) -> int:
        """What they take."""

    @property
    def max_bytes(self) -> int:
        """What they may take."""


class StreamStates(Protocol):
    """Tells how full streams are."""

    async def stream_state(self, stream: str) -> StreamState:
        """The state of `stream` (name below the prefix).

        Raises:
            PublishError: there is no such stream, or the server does not answer.
        """


class WorkItem(Protocol):
    """One message of a work queue, to be settled by exactly one of its methods."""

    @property
    def delivery(self) -> Delivery:
        """The message."""

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""

    @property
    def pending(self) -> int:
        """How many more waited in the queue when it was given out."""

    async def done(self) -> None:
        """Acknowledge and wait for the server's confirmation: it will not come again."""

    async def retry(self, delay_seconds: float) -> None:
        """Give it back; it comes again after the delay."""

    async def extend(self) -> None:
        """Say that work goes on, so that it is not delivered to another."""

    async def dead(self, reason: str) -> None:
        """Move it to FLEET_DEAD with the reason, then settle it here."""


class WorkQueue(Protocol):
    """Takes messages from a work-queue stream."""

    async def take(
        self,
        stream: str,
        consumer: str,
        *,
        batch: int,
        wait_seconds: float,
        max_bytes: int | None = None,
    ) -> Sequence[WorkItem]:
        """Up to `batch` items for the durable `consumer`, waiting at most `wait_seconds`.

        Where `max_bytes` is given, what is on its way is no more than that, headers included, or
        than the largest message there may be.
        """

    async def done_all(self, items: Sequence[WorkItem]) -> bool:
        """Acknowledge items together; False: not confirmed, so any of them may come again."""

    async def depth(self, stream: str) -> int:
        """How many messages wait in `stream`. Raises PublishError, as `take_over`."""

    async def first_from(self, stream: str, subject: str, sequence: int) -> tuple[int, int] | None:
        """Sequence and time of storage of the first on `subject` from `sequence` on, if any.

        Raises PublishError.
        """

    async def take_over(self, stream: str, consumer: str) -> None:
        """Have what a predecessor took and did not settle given out anew, at once.

        For its only taker. Raises PublishError where the server does not answer.
        """

    async def give_back(self, stream: str, consumer: str) -> None:
        """Ask for no more, and let other takers have at once what came and was not taken.

        What was taken is still the caller's. Raises PublishError where the server does not
        answer: others have it after 30 s then.
        """


class LetterStream(Protocol):
    """A stream that is read message by message, each of which can be removed."""

    def read(
        self, stream: str, *, subject: str = ">", start_sequence: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """What `stream` holds now, in order, as Subscriber has it."""

    async def count(self, stream: str, subject: str) -> int:
        """How many messages `stream` holds on subjects that match.

        Raises:
            PublishError: the server does not answer, or this user may not.
        """

    async def remove(self, stream: str, sequence: int) -> None:
        """Remove one message.

        Raises:
            PublishError: it is not there, the server does not answer, or this user may not.
        """


class Bucket(Protocol):
    """A key-value bucket with revisions."""

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Value and revision, or None."""

    async def put(self, key: str, value: bytes) -> int:
        """Store unconditionally; returns the revision."""

    async def create(self, key: str, value: bytes) -> int:
        """Store if absent; RevisionConflictError otherwise."""

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Store if the key still has `revision`; RevisionConflictError otherwise."""

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove the key; absent is fine. RevisionConflictError if it has not `revision`."""

    async def purge(self, key: str) -> None:
        """Remove the key and every trace of it, of which `delete` leaves a small one for ever."""

    async def items(self) -> Mapping[str, tuple[bytes, int]]:
        """All keys with value and revision."""


class Lease(Protocol):
    """Ownership of a name until it is lost or given back."""

    @property
    def held(self) -> bool:
        """True while it is certain that nobody else owns it."""

    @property
    def fence(self) -> int:
        """Grows with every change of owner."""

    async def wait_lost(self) -> None:
        """Return once the lease is lost or given back."""


class Leases(Protocol):
    """Hands out leases: one owner per name, renewed, free again 6 s after its owner died."""

    async def try_acquire(self, name: str) -> Lease | None:
        """The lease, or None while somebody else has it."""

    async def release(self, lease: Lease) -> None:
        """Give it back, so that others need not wait."""

    async def is_held(self, name: str) -> bool:
        """Whether anybody has the lease; raises PublishError where that is not known."""


class Moment(msgspec.Struct, frozen=True, gc=False):
    """Stream time: the timestamp of a message (or of a tick) and the last sequence seen."""

    ns: int
    sequence: int


class Emit(msgspec.Struct, frozen=True, gc=False):
    """A message a handler gives out, with its id: the same from every replica and every replay."""

    message: Message
    message_id: str


class Handler(Protocol):
    """Pure: messages and ticks in, messages out. No clock, no I/O, no logging on the normal path.

    One instance serves the keys (nodes, pools, or the fleet) of one slot. `window_ns` is its
    longest memory: a rebuild replays that much of the stream before the watermark. What must
    outlive the window (open alerts, say) goes through `snapshot` and `restore`; `restore` is
    called after the replay and replaces that part of the state.
    """

    @property
    def name(self) -> str:
        """One word, the module's: it names settings, snapshots and log fields."""

    @property
    def scope(self) -> Literal["node", "pool", "fleet"]:
        """Whose messages it needs together."""

    @property
    def consumes(self) -> tuple[type[Message], ...]:
        """The messages it wants."""

    @property
    def window_ns(self) -> int:
        """Its longest memory."""

    def handle(self, message: Any, now: Moment) -> Sequence[Emit]:  # noqa: ANN401 - of `consumes`
        """One message of a consumed type, in stream order."""

    def tick(self, now: Moment) -> Sequence[Emit]:
        """A point of the fixed grid of stream time, before the first message at or after it.

        Each 5 s, or each 0.5 s where the handler has a `tick_ns` of that.
        """

    def snapshot(self) -> bytes | None:
        """State that outlives the window, or None."""

    def restore(self, snapshot: bytes) -> None:
        """Take over what `snapshot` gave, from this or another process."""


class Clock(Protocol):
    """Wall clock."""

    def __call__(self) -> int:
        """Nanoseconds since the Unix epoch."""


class BlockingCalls(Protocol):
    """Runs calls that may never return, in order, outside the event loop."""

    async def run(self, work: Callable[[], T], /) -> T:
        """What `work` returns or raises; given up while it still waits, it never runs."""

    def close(self) -> None:
        """End after what was given; does not wait."""
