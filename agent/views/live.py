"""The live view of `up` and `top`: what is heard, asked for and drawn once a second."""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from rich.console import Console, Group
from rich.live import Live

from agent.bus import Bus
from agent.fleet import SORTS, Choice, Fleet, FleetRows
from agent.views.live_tables import Picture, draw
from agent.views.terminal_keys import Keys
from schemas.alert_api import AlertFilter, AlertsReply
from schemas.analysis import Alert, Utilization
from schemas.api import ArchiveStatus, HealthReply, RecommendationsReply
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import UNDECODABLE, Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import PublishError, RequestError
from schemas.scaling import Decision, Execution, Recommendation
from schemas.units import SECOND_NS, token

T = TypeVar("T")

REFRESH_SECONDS = 1.0
ASK_SECONDS = 5.0
ASK_TIMEOUT_SECONDS = 2.0
LISTEN_SECONDS = 6.0
"""Longer than engines and agents take from one sample to the next."""
READ_SECONDS = 3.0
METRICS_SECONDS = 60.0
RECENT_SECONDS = 3600.0
HELP = "q quit  o all  n nodes  g GPUs  e engines  p pools  a alerts  d advice  s r sort"
"""Not wider than the 80 columns that a terminal has."""
_KINDS: tuple[type[Message], ...] = (
    HostMetrics,
    GpuMetrics,
    EngineMetrics,
    CacheMetrics,
    Utilization,
    Recommendation,
)
_SECTION_KEYS = {
    "n": "nodes",
    "g": "gpus",
    "e": "engines",
    "p": "pools",
    "a": "alerts",
    "d": "advice",
    "o": "",
}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What `top --json` prints: one instant, as heard and as answered."""

    at_ns: int
    health: str | None
    fleet: FleetRows
    alerts: list[Alert] | None
    """The 1,000 worst; null: nobody answered."""
    open_alerts: int | None
    silenced_alerts: int | None
    is_advice_told: bool
    """Whether the handlers said what stands; else it is what was heard of."""


class LiveView:
    """Subscribes, asks and redraws once a second; an async context manager.

    While it is shown, what is written to `sys.stdout` and `sys.stderr` appears above it; with
    `whole_screen` it takes the terminal and its keys.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        console: Console | None = None,
        choice: Choice | None = None,
        only: str = "",
        whole_screen: bool = False,
    ) -> None:
        self._bus = bus
        self._live = Live(
            console=console, auto_refresh=False, screen=whole_screen, vertical_overflow="crop"
        )
        self._whole_screen = whole_screen
        self._choice = choice or Choice()
        self._only = only
        self._top = 0
        self._fleet = Fleet()
        self._alerts: AlertsReply | None = None
        self._is_advice_told = False
        self._archive: ArchiveStatus | None = None
        self._health: HealthReply | None = None
        self._could_read = True
        self._changed = asyncio.Event()
        self._is_news = False
        self._stop: list[Callable[[], Awaitable[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self.quit = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.subscribe()
        self._live.start()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._live.stop()
        await self.unsubscribe()

    async def unsubscribe(self) -> None:
        """Hear no more."""
        for stop in self._stop:
            await stop()
        self._stop.clear()

    async def subscribe(self) -> None:
        """Begin to collect what is shown, with what the streams hold of the last while."""
        decoders: dict[type[Message], msgspec.json.Decoder[Message]] = {}
        for kind in _KINDS:
            decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(kind)

            def take(
                _subject: str, payload: bytes, decoder: msgspec.json.Decoder[Message] = decoder
            ) -> None:
                self.accept(decoder.decode(payload), time.time_ns())

            self._stop.append(await self._bus.subscribe(kind.pattern(), take))
            decoders[kind] = decoder
        await asyncio.gather(*(self._read(kind, decoder) for kind, decoder in decoders.items()))

        def note(_subject: str, _payload: bytes) -> None:
            self._is_news = True
            self._changed.set()

        for news in (Alert, Recommendation, Decision, Execution):
            self._stop.append(await self._bus.subscribe(news.pattern(), note))

    async def _read(self, kind: type[Message], decoder: msgspec.json.Decoder[Message]) -> None:
        now_ns = time.time_ns()
        seconds = METRICS_SECONDS if kind.STREAM == "METRICS" else RECENT_SECONDS
        deliveries = self._bus.read(
            kind.STREAM or "",
            subject=kind.pattern(),
            start_ns=now_ns - int(seconds * SECOND_NS),
            end_ns=now_ns,
        )
        try:
            async with asyncio.timeout(READ_SECONDS), contextlib.aclosing(deliveries):
                async for delivery in deliveries:
                    with contextlib.suppress(*UNDECODABLE):
                        self.accept(decoder.decode(delivery.payload), delivery.stored_ns)
        except (TimeoutError, PublishError):  # a guest may not; it hears what comes
            self._could_read = False

    def accept(self, message: Message, heard_ns: int) -> None:
        """Take one message into the picture."""
        self._fleet.accept(message, heard_ns)

    async def _run(self) -> None:
        with Keys(self.press) if self._whole_screen else contextlib.nullcontext():
            asking: asyncio.Task[None] | None = None
            ask_at = 0.0
            while True:
                # Seldom: our own questions pass by on the bus that people watch.
                is_due = self._is_news or time.monotonic() >= ask_at
                if is_due and (asking is None or asking.done()):
                    self._is_news = False
                    ask_at = time.monotonic() + ASK_SECONDS
                    asking = asyncio.create_task(self.refresh())
                self._live.update(self.render(), refresh=True)
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._changed.wait()

    async def refresh(self) -> None:
        """Ask for what is not published: health, open alerts, standing advice, the archive."""
        health, alerts, advice, archive = await asyncio.gather(
            self._ask("api.health.basic", HealthReply),
            self._ask("api.alert.list", AlertsReply, self._alert_filter()),
            self._ask("api.optimize.recommendations", RecommendationsReply),
            self._ask("api.archive.status.default", ArchiveStatus),
        )
        self._health = health or self._health
        self._archive = archive or self._archive
        self._alerts = alerts or self._alerts
        if advice is not None:
            self._is_advice_told = True
            self._fleet.tell_standing(advice.rows)
        self._changed.set()

    def _alert_filter(self) -> AlertFilter:
        node, pool = self._choice.node, self._choice.pool
        return AlertFilter(
            scope=None if node is None else "node",
            id=None if node is None else token(node),
            pool=None if pool is None else token(pool),
        )

    async def _ask(
        self, subject: str, kind: type[T], asked: msgspec.Struct | None = None
    ) -> T | None:
        payload = b"" if asked is None else msgspec.json.encode(asked)
        try:
            answer = await self._bus.request(subject, payload, timeout_seconds=ASK_TIMEOUT_SECONDS)
            return msgspec.json.decode(answer.payload, type=kind)
        except (RequestError, *UNDECODABLE):
            return None

    async def listen(self) -> None:
        """For a picture at once: wait for what comes where the streams may not be read."""
        await asyncio.gather(
            self.refresh(), asyncio.sleep(0 if self._could_read else LISTEN_SECONDS)
        )

    def snapshot(self) -> Snapshot:
        """The picture as data."""
        now_ns = time.time_ns()
        return Snapshot(
            at_ns=now_ns,
            health=self._health.status if self._health else None,
            fleet=self._fleet.rows(self._choice, now_ns),
            alerts=self._alerts.rows if self._alerts else None,
            open_alerts=self._alerts.total if self._alerts else None,
            silenced_alerts=self._alerts.silenced_total if self._alerts else None,
            is_advice_told=self._is_advice_told,
        )

    def render(self, *, width: int | None = None, height: int | None = None) -> Group:
        """The picture, in the size of the terminal."""
        console = self._live.console
        rows = self._fleet.rows(self._choice, time.time_ns())
        picture = Picture(
            rows=rows,
            alerts=self._alerts,
            is_advice_told=self._is_advice_told,
            health=self._health.status if self._health else None,
            archive=self._archive,
            messages=self._fleet.messages,
            only=self._only,
            where=self._choice.where,
            keys=self._keys_text() if self._whole_screen else "",
            top=self._top,
        )
        return draw(picture, width or console.width, height or console.height)

    def _keys_text(self) -> str:
        if not self._choice.sort and not self._choice.reverse:
            return HELP
        by = self._choice.sort.replace("_", " ") or "name"
        return f"by {by}{', reversed' if self._choice.reverse else ''} · {HELP}"

    def press(self, key: str) -> None:
        """What a key does; others do nothing."""
        if key in ("q", "\x03", "\x04"):
            self.quit.set()
        elif key in _SECTION_KEYS:
            self._only, self._top = _SECTION_KEYS[key], 0
            self._choice = dataclasses.replace(self._choice, sort="", reverse=False)
        elif key == "s":
            known = SORTS.get(self._only or "gpus", ("",))
            at = known.index(self._choice.sort) if self._choice.sort in known else 0
            self._choice = dataclasses.replace(self._choice, sort=known[(at + 1) % len(known)])
        elif key == "r":
            self._choice = dataclasses.replace(self._choice, reverse=not self._choice.reverse)
        elif key in ("j", "down"):
            self._top += 1
        elif key in ("k", "up"):
            self._top = max(0, self._top - 1)
        self._changed.set()


async def show_fleet(
    bus: Bus,
    choice: Choice,
    *,
    only: str,
    once: bool,
    as_json: bool,
    say: Callable[[Any], None],
) -> None:
    """`top`: until `q`, or with `once` and as JSON a single picture."""
    console = Console()
    if once or as_json:
        view = LiveView(bus, console=console, choice=choice, only=only)
        await view.subscribe()
        await view.listen()
        await view.unsubscribe()
        if as_json:
            say(view.snapshot())
        else:
            console.print(view.render(height=None if sys.stdout.isatty() else 10_000))
        return
    async with LiveView(bus, console=console, choice=choice, only=only, whole_screen=True) as view:
        closed = asyncio.create_task(bus.closed.wait())
        quitting = asyncio.create_task(view.quit.wait())
        await asyncio.wait({closed, quitting}, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        quitting.cancel()
