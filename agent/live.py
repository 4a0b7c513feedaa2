"""The live view of `up` and `top`: nodes, GPUs, engines, alerts, advice, cache, archive."""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent import human
from agent.bus import Bus
from schemas.analysis import Alert
from schemas.api import ArchiveStatus, HealthReply
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import UNDECODABLE, Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import PublishError, RequestError
from schemas.scaling import Recommendation
from schemas.units import SECOND_NS, to_ns, token

REFRESH_SECONDS = 1.0
ASK_SECONDS = 5.0
NEWEST = 6
LOW_HEIGHT = 45
LINES_BESIDE_NODES = 20
NO_GPUS = "GPUs: none reported here (try --simulate-gpus 8xH100)"
NO_ENGINES = (
    "Engines: none. Scrape them with --engine URL, publish EngineMetrics yourself "
    "(examples/publish_metrics.py), or try --simulate-engines 4"
)
STALE_SECONDS = 30.0
RECENT_SECONDS = 3600.0
"""Alerts and advice of the last hour are shown at once."""
_KINDS: tuple[type[Message], ...] = (
    HostMetrics,
    GpuMetrics,
    EngineMetrics,
    CacheMetrics,
    Alert,
    Recommendation,
)


class LiveView:
    """Subscribes and redraws once a second; an async context manager.

    While it is shown, what is written to `sys.stdout` and `sys.stderr` appears above it.
    """

    def __init__(self, bus: Bus, *, console: Console | None = None) -> None:
        self._bus = bus
        self._live = Live(console=console, refresh_per_second=4)
        self._hosts: dict[str, HostMetrics] = {}
        self._gpus: dict[str, GpuMetrics] = {}
        self._engines: dict[str, EngineMetrics] = {}
        self._caches: dict[str, CacheMetrics] = {}
        self._alerts: deque[Alert] = deque(maxlen=NEWEST)
        self._advice: deque[Recommendation] = deque(maxlen=NEWEST)
        self._archive: ArchiveStatus | None = None
        self._health: HealthReply | None = None
        self._messages = 0
        self._stop: list[Callable[[], Awaitable[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.subscribe()
        self._live.start()
        self._task = asyncio.create_task(self._draw())
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
        for stop in self._stop:
            await stop()

    async def subscribe(self) -> None:
        """Begin to collect what is shown, with what the streams hold of the last while."""
        now_ns = time.time_ns()
        for kind in _KINDS:
            decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(kind)
            seconds = STALE_SECONDS if kind.STREAM == "METRICS" else RECENT_SECONDS
            with contextlib.suppress(PublishError):
                async for delivery in self._bus.read(
                    kind.STREAM or "",
                    subject=kind.pattern(),
                    start_ns=now_ns - int(seconds * SECOND_NS),
                    end_ns=now_ns,
                ):
                    with contextlib.suppress(*UNDECODABLE):
                        self.accept(decoder.decode(delivery.payload))

            def take(
                _subject: str, payload: bytes, decoder: msgspec.json.Decoder[Message] = decoder
            ) -> None:
                self.accept(decoder.decode(payload))

            self._stop.append(await self._bus.subscribe(kind.pattern(), take))

    def accept(self, message: Message) -> None:
        """Take one event into the picture."""
        self._messages += 1
        match message:
            case HostMetrics():
                self._hosts[message.node] = message
            case GpuMetrics():
                self._gpus[f"{message.node}.{message.gpu}"] = message
            case EngineMetrics():
                self._engines[f"{message.node}.{message.engine}"] = message
            case CacheMetrics():
                self._caches[f"{message.instance}.{message.namespace}"] = message
            case Alert():
                self._alerts.appendleft(message)
            case Recommendation():
                self._advice.appendleft(message)

    async def _draw(self) -> None:
        ask_at = 0.0
        while True:
            # Seldom: our own questions pass by on the bus that people watch.
            if time.monotonic() >= ask_at:
                await self.refresh()
                ask_at = time.monotonic() + ASK_SECONDS
            self._live.update(self.render())
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Ask for what is not published: health, and the archive's figures."""
        with contextlib.suppress(RequestError, *UNDECODABLE):
            answer = await self._bus.request("api.health.basic", timeout_seconds=1)
            self._health = msgspec.json.decode(answer.payload, type=HealthReply)
        with contextlib.suppress(RequestError, *UNDECODABLE):
            answer = await self._bus.request("api.archive.status.default", timeout_seconds=1)
            self._archive = msgspec.json.decode(answer.payload, type=ArchiveStatus)

    def render(self) -> Group:
        """The whole picture; on a low terminal GPUs and engines are a line each."""
        height = self._live.console.height
        is_low = height < LOW_HEIGHT
        nodes = max(1, (height - LINES_BESIDE_NODES) // 2) if is_low else 20
        return Group(
            self._headline(),
            self._nodes(nodes),
            self._gpu_line() if is_low else self._gpu_table(),
            self._engine_line() if is_low else self._engine_table(),
            self._events(NEWEST // 3 if is_low else NEWEST),
            self._storage(),
        )

    def _headline(self) -> Text:
        status = self._health.status if self._health else "starting"
        colour = {"healthy": "green", "degraded": "yellow", "critical": "red"}.get(status, "dim")
        why = " (`resource-agent health` says why)" if status in ("degraded", "critical") else ""
        return Text.assemble(
            ("resource-agent ", "bold"),
            (status + why, colour),
            (f"   {self._messages} messages seen   {time.strftime('%H:%M:%S')}", "dim"),
        )

    def _nodes(self, most: int) -> Table:
        table = _table(
            "Nodes", "node", "CPU", "load 1m", "memory", "fullest disk", "net in / out", "age"
        )
        for host in sorted(self._hosts.values(), key=lambda h: h.node)[:most]:
            cpu, memory = host.cpu, host.memory
            disks = [f.utilization_ratio for f in host.filesystems or () if f.utilization_ratio]
            received = _sum(n.received_bytes_per_second for n in host.network or ())
            sent = _sum(n.sent_bytes_per_second for n in host.network or ())
            table.add_row(
                host.node + (" (simulated)" if host.simulated else ""),
                _percent(cpu.utilization_ratio if cpu else None),
                _number(cpu.load_average_1m if cpu else None),
                f"{_percent(memory.utilization_ratio)} of {human.size(memory.total_bytes)}"
                if memory
                else "?",
                _percent(max(disks, default=None)),
                f"{_rate(received)} / {_rate(sent)}",
                _age(host),
            )
        if len(self._hosts) > most:
            table.add_row(f"… and {len(self._hosts) - most} more")
        return table

    def _gpu_line(self) -> Text:
        if not self._gpus:
            return Text(NO_GPUS, style="dim")
        gpus = self._gpus.values()
        busy = [g.utilization_ratio for g in gpus if g.utilization_ratio is not None]
        heat = [g.temperature_celsius for g in gpus if g.temperature_celsius is not None]
        power = _sum(g.power_watts for g in gpus)
        note = " (simulated)" if any(g.simulated for g in gpus) else ""
        return Text(
            f"GPUs{note}: {len(gpus)}, busy {_percent(_mean(busy))} on average, "
            f"{_percent(max(busy, default=None))} at most, hottest "
            + (f"{max(heat):.0f} °C" if heat else "?")
            + ("" if power is None else f", {power:,.0f} W")
        )

    def _gpu_table(self) -> Table | Text:
        if not self._gpus:
            return Text(NO_GPUS, style="dim")
        table = _table("GPUs", "GPU", "busy", "memory", "temp.", "power", "throttled by")
        for gpu in sorted(self._gpus.values(), key=_gpu_place)[:16]:
            name = f"{gpu.node} #{gpu.index} {(gpu.name or '').removeprefix('NVIDIA ')}"
            why = ", ".join(gpu.throttle_reasons or ()) or "-"
            table.add_row(
                _cell(name + (" (simulated)" if gpu.simulated else "")),
                _percent(gpu.utilization_ratio),
                _percent(gpu.memory_utilization_ratio),
                "?" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} °C",
                "?" if gpu.power_watts is None else f"{gpu.power_watts:.0f} W",
                _cell(why if gpu.is_reachable else f"unreachable: {gpu.errors.get('gpu')}"),
            )
        return table

    def _fresh_engines(self) -> list[EngineMetrics]:
        now_ns = time.time_ns()
        return [
            e
            for e in self._engines.values()
            if now_ns - to_ns(e.observed_at) < STALE_SECONDS * SECOND_NS
        ]

    def _engine_line(self) -> Text:
        fresh = self._fresh_engines()
        if not fresh:
            return Text(NO_ENGINES, style="dim")
        note = " (simulated)" if any(e.simulated for e in fresh) else ""
        used = [e.kv_cache_usage_ratio for e in fresh if e.kv_cache_usage_ratio is not None]
        return Text(
            f"Engines{note}: {len(fresh)}, "
            f"{sum(e.requests_running or 0 for e in fresh)} running, "
            f"{sum(e.requests_waiting or 0 for e in fresh)} waiting, "
            f"fullest KV cache {_percent(max(used, default=None))}"
        )

    def _engine_table(self) -> Table | Text:
        fresh = self._fresh_engines()
        if not fresh:
            return Text(NO_ENGINES, style="dim")
        table = _table(
            "Engines", "engine", "pool", "running", "waiting", "KV", "TTFT p95", "tokens/s", left=2
        )
        for engine in sorted(fresh, key=lambda e: (e.pool, e.engine))[:16]:
            table.add_row(
                engine.engine + (" (simulated)" if engine.simulated else ""),
                _cell(_pool(engine)),
                _count(engine.requests_running),
                _count(engine.requests_waiting),
                _percent(engine.kv_cache_usage_ratio),
                "?" if engine.ttft_p95_seconds is None else f"{engine.ttft_p95_seconds:.2f} s",
                _number(engine.generation_tokens_per_second),
            )
        return table

    def _events(self, most: int) -> Group:
        lines = []
        for alert in itertools.islice(self._alerts, most):
            colour = {"critical": "red", "warning": "yellow", "info": "dim"}[alert.severity]
            if alert.transition == "cleared":
                colour = "green"
            note = " (simulated)" if alert.simulated else ""
            text = human.printable(alert.text)
            lines.append(_line(f"{alert.transition:8} {text}{note}", colour))
        advice = []
        for one in itertools.islice(self._advice, most):
            note = " (simulated)" if one.simulated else ""
            advice.append(_line(f"{one.action:10} {human.printable(one.text)}{note}", "cyan"))
        return Group(
            Panel(Group(*lines) if lines else Text("none", style="dim"), title="Newest alerts"),
            Panel(Group(*advice) if advice else Text("none", style="dim"), title="Newest advice"),
        )

    def _storage(self) -> Text:
        parts = []
        for cache in self._caches.values():
            parts.append(_cache_line(cache))
        if self._archive is not None:
            parts.append(
                f"Archive: {self._archive.entries} entries, "
                f"{human.size(self._archive.stored_bytes)} stored, "
                f"{self._archive.restored_total} restored"
            )
        return Text("\n".join(parts), style="bold")


def _cache_line(cache: CacheMetrics) -> str:
    if cache.source != "resource-agent":
        found = cache.token_hit_ratio
        text = "no lookups now" if found is None else f"{found:.0%} of the tokens found"
        return f"{cache.source} {cache.instance}: {_size(cache.used_bytes)} in RAM, {text}"
    hits = "no lookups yet" if cache.hit_ratio is None else f"{cache.hit_ratio:.0%} hits"
    return (
        f"Cache {cache.namespace}: {_count(cache.entries)} entries, "
        f"{_size(cache.used_bytes)} of {_size(cache.limit_bytes)}, {hits}, "
        f"{_count(cache.evictions_total)} evicted"
    )


def _cell(text: str) -> Text:
    """What a stranger may have written: neither the terminal nor rich obeys it."""
    return Text(human.printable(text))


def _pool(engine: EngineMetrics) -> str:
    """A pool that is called after its model, by the model's own name."""
    return engine.model if engine.pool == token(engine.model) else engine.pool


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table whose first `left` columns are names, the others numbers."""
    table = Table(title=title, title_justify="left", expand=True, box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return table


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _gpu_place(gpu: GpuMetrics) -> tuple[str, int, int]:
    """A GPU's place in the table; its MIG instances come after it."""
    if gpu.mig is None:
        return gpu.node, gpu.index, -1
    return gpu.node, gpu.index, gpu.mig.index or gpu.mig.gpu_instance or 0


def _percent(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio:.0%}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}"


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _size(value: float | None) -> str:
    return "?" if value is None else human.size(value)


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{human.size(value)}/s"


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _age(host: HostMetrics) -> str:
    return f"{max(0.0, (time.time_ns() - to_ns(host.observed_at)) / SECOND_NS):.0f} s"
