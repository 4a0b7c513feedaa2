"""One slot: the handlers of a share of the keys, their stream time, and the watermark. Pure."""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeAlias, TypeVar

import msgspec

from schemas.engines import EngineMetrics
from schemas.message import UNDECODABLE, Message
from schemas.protocols import Emit, Handler, Moment
from schemas.units import SECOND_NS

T = TypeVar("T")
QUIET: Sequence[Emit] = ()

TICK_NS = 5 * SECOND_NS
STEP_NS = TICK_NS // 10
"""Handlers of many groups, whose `tick_ns` this is, judge a tenth of them at a time."""
TURNS = TICK_NS // STEP_NS
SCOPES = ("node", "pool", "fleet")
FLEET = "all"
"""The key of the whole fleet."""

_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


@functools.lru_cache(maxsize=1 << 17)
def slot_of(scope: str, key: str, slots: int) -> int:
    """The slot of a key: FNV-1a (32 bit) of `<scope>.<key>` modulo `slots`.

    The same everywhere and for ever, as it decides who owns what: `node.n1` of 8 → 4.
    """
    digest = _FNV_OFFSET
    for byte in f"{scope}.{key}".encode():
        digest = ((digest ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return digest % slots


@functools.lru_cache(maxsize=1 << 17)
def turn_of(key: str, turns: int = TURNS) -> int:
    """Which step of each 5 s, or of so many `turns`, is the group's, the same everywhere."""
    return zlib.crc32(key.encode()) % turns


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """How far a slot's output is safely published, with the state that outlives the window.

    Everything that follows from messages up to `sequence` and ticks up to `ns` is in its stream.
    """

    sequence: int
    ns: int
    snapshots: dict[str, bytes] = {}

    def encode(self) -> bytes:
        """Deflated: thousands of open alerts, much like each other, are megabytes as they are."""
        return zlib.compress(msgspec.msgpack.encode(self), level=1)

    @classmethod
    def decode(cls, data: bytes) -> "Watermark":
        """What `encode` gave.

        Raises:
            ValueError: it did not give this.
        """
        try:
            return msgspec.msgpack.decode(zlib.decompress(data), type=cls)
        except (zlib.error, *UNDECODABLE) as error:
            raise ValueError(str(error)) from error


@dataclasses.dataclass(slots=True)
class Routed:
    """A decoded message with its place in the stream."""

    message: Message
    now: Moment


Hearer: TypeAlias = tuple[Callable[[Message, Moment], Sequence[Emit]], Handler]
"""A handler, after its `handle`: bound once, as each message has a dozen of them."""
Ticker: TypeAlias = tuple[Callable[[Moment], Sequence[Emit]], Handler]
"""A handler, after its `tick`."""


def _raise(handler: Handler, error: Exception) -> NoReturn:
    raise error


def _window_of_others(handlers: Sequence[Handler]) -> int:
    """The longest window of the handlers that hear anything but engines."""
    return max((h.window_ns for h in handlers if tuple(h.consumes) != (EngineMetrics,)), default=0)


class Slot:
    """The handlers that own the keys of one slot. From `next_tick_ns` on a tick is due first.

    A rebuild needs the engines' messages from `start_ns` and all others from `whole_ns` on:
    scaling, which hears engines alone, looks back for much longer than the other handlers.

    Fed in stream order by `feed` and `advance`; both return what is to be published. Until the
    watermark is passed nothing is returned: the first messages after a take-over only rebuild the
    windows. `tick` runs on a grid of 5 s of stream time (of 0.5 s for a handler that asks for
    it), always before the first message at or after a grid point, so that a replay ticks where
    the live run did. A handler that raises is reported to `on_failure`; what it would have said is
    missing, the other handlers go on.
    """

    def __init__(
        self,
        index: int,
        slots: int,
        handlers: Sequence[Handler],
        watermark: Watermark,
        on_failure: Callable[[Handler, Exception], None] = _raise,
    ) -> None:
        self.index = index
        self._on_failure = on_failure
        self.handlers = tuple(handlers)
        self.window_ns = max((handler.window_ns for handler in handlers), default=0)
        self.start_ns = max(0, watermark.ns - self.window_ns)
        self.whole_ns = max(self.start_ns, watermark.ns - _window_of_others(handlers))
        self.last_sequence = 0
        self._slots = slots
        self._watermark = watermark
        self._restored = False
        self._last_message_ns = self.start_ns
        self.next_tick_ns = (self.start_ns // STEP_NS + 1) * STEP_NS
        self._ticking: list[Ticker] = [(one.tick, one) for one in handlers]
        self._stepping: list[Ticker] = [
            (one.tick, one) for one in handlers if getattr(one, "tick_ns", TICK_NS) == STEP_NS
        ]
        self._hearers: dict[tuple[type[Message], tuple[str, ...]], tuple[Hearer, ...]] = {}

    def hearers(self, message: Message) -> Sequence[Hearer]:
        """The handlers that own a key of such a message; nearly always, of eight slots, none."""
        scopes: tuple[str, ...] = ()
        for scope in SCOPES:
            key = key_of(message, scope)
            if key is not None and slot_of(scope, key, self._slots) == self.index:
                scopes += (scope,)
        kind = type(message)
        found = self._hearers.get((kind, scopes))
        if found is None:
            found = self._hearers[kind, scopes] = tuple(
                (handler.handle, handler)
                for scope in scopes
                for handler in self.handlers
                if handler.scope == scope and kind in handler.consumes
            )
        return found

    def feed(self, routed: Routed) -> Sequence[Emit]:
        """One message of the stream, of whatever key; messages already seen are skipped."""
        message, now = routed.message, routed.now
        if now.sequence <= self.last_sequence:
            return QUIET
        emitted = self._run_ticks(now.ns, now.sequence - 1)
        self._last_message_ns = max(self._last_message_ns, now.ns)
        hearers = self.hearers(message)
        if not hearers:
            self.last_sequence = now.sequence
            return emitted
        return [*emitted, *self.hear(message, now, hearers)]

    def hear(self, message: Message, now: Moment, hearers: Sequence[Hearer]) -> Sequence[Emit]:
        """One message with its `hearers`, while no tick is due; seen already, it is skipped.

        Slots in a group hear those of their keys alone, and twice a second any one by `feed`.
        """
        sequence = now.sequence
        if sequence <= self.last_sequence:
            return QUIET
        self.last_sequence = sequence
        is_quiet = sequence <= self._watermark.sequence
        if not (is_quiet or self._restored):
            self._restore()
        emitted: list[Emit] | None = None
        for handle, handler in hearers:
            # As `_guarded`, which costs as much as some of them.
            try:
                given = handle(message, now)
            except Exception as error:
                self._on_failure(handler, error)
                continue
            if given and not is_quiet:
                emitted = [*(emitted or ()), *given]
        return QUIET if emitted is None else emitted

    def advance(self, ns: int, sequence: int = 0) -> Sequence[Emit]:
        """Stream time reached `ns` without a message after `sequence`: run the ticks up to it."""
        return self._run_ticks(ns, max(sequence, self.last_sequence))

    def _run_ticks(self, ns: int, sequence: int) -> list[Emit]:
        emitted: list[Emit] = []
        while self.next_tick_ns <= ns:
            at, resume = self.next_tick_ns, (ns - TICK_NS) // STEP_NS * STEP_NS
            if resume > at > self._last_message_ns + self.window_ns + 2 * TICK_NS:
                # Every window is empty by now: nothing can come of the ticks in between. The last
                # ones run all the same: after them each group has its turn as in whoever takes
                # over, and has ticked through its whole window.
                self.next_tick_ns = resume
                continue
            self.next_tick_ns = at + STEP_NS
            is_quiet = at <= self._watermark.ns
            if not is_quiet:
                self._restore()
            now = Moment(at, sequence)
            for tick, handler in self._stepping if at % TICK_NS else self._ticking:
                # As `_guarded`, for the same reason as in `hear`.
                try:
                    given = tick(now)
                except Exception as error:
                    self._on_failure(handler, error)
                    continue
                if given and not is_quiet:
                    emitted.extend(given)
        return emitted

    def _restore(self) -> None:
        if self._restored:
            return
        self._restored = True
        for handler in self.handlers:
            snapshot = self._watermark.snapshots.get(f"{handler.scope}.{handler.name}")
            if snapshot is not None:
                self._guarded(handler, handler.restore, snapshot, otherwise=None)

    def _guarded(
        self, handler: Handler, method: Callable[..., T], *arguments: object, otherwise: T
    ) -> T:
        """What `method` of `handler` returns, `otherwise` when it raises."""
        try:
            return method(*arguments)
        except Exception as error:
            self._on_failure(handler, error)
            return otherwise

    def watermark(self) -> Watermark:
        """The watermark as of now; right only while nothing the slot returned is unpublished."""
        if not self._restored and self.last_sequence < self._watermark.sequence:
            return self._watermark
        self._restore()
        snapshots = {}
        for handler in self.handlers:
            name = f"{handler.scope}.{handler.name}"
            before = self._watermark.snapshots.get(name)
            snapshot = self._guarded(handler, handler.snapshot, otherwise=before)
            if snapshot is not None:
                snapshots[name] = snapshot
        return Watermark(
            sequence=max(self.last_sequence, self._watermark.sequence),
            ns=max(self._last_message_ns, self.next_tick_ns - STEP_NS, self._watermark.ns),
            snapshots=snapshots,
        )


def key_of(message: Message, scope: str) -> str | None:
    """The key of `message` in a scope; None when it has none (an engine without a pool)."""
    if scope == "fleet":
        return FLEET
    key = getattr(message, scope, None)
    return key if isinstance(key, str) else None


def replay(
    messages: Iterable[Routed], make_handlers: Callable[[], Sequence[Handler]]
) -> list[Emit]:
    """What the handlers say to a recorded stream: the same as they said live."""
    slot = Slot(0, 1, make_handlers(), Watermark(sequence=0, ns=0))
    return list(itertools.chain.from_iterable(slot.feed(routed) for routed in messages))
