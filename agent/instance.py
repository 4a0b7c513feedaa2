"""What every service has in common: its name, its registration, its health, its endpoints."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeAlias

import msgspec
import structlog

from agent.bus import Bus
from agent.bus.serving import VERSION, Service
from agent.health import health_endpoints
from agent.identity import Identity
from agent.registry import NameTakenError, Registration, RegistryView
from schemas.lifecycle import Component, InstanceRecord, Role
from schemas.protocols import Endpoint, PublishError
from schemas.units import instant

log = structlog.get_logger()

FIRST_PROBE_SECONDS = 0.25
WORDS_SECONDS = 1.0
"""Between heartbeats that only tell new words: parts that change them all the time must wait."""
_NUMBER = re.compile(r"\d+([.:]\d+)*")

# Of each component its state, and its text without the numbers.
_Summary: TypeAlias = dict[str, tuple[str, str]]


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How often a service looks at itself and says so."""

    heartbeat_seconds: float
    probe_seconds: float
    expected_roles: tuple[Role, ...]


class Instance:
    """One running service: registers, beats, answers health, serves endpoints, drains.

    An async context manager: entering takes the name (NameTakenError if it is somebody else's)
    and serves health; `ready` announces that the service does its work; leaving drains the
    endpoints and deregisters. A change of any component's state is announced at once, one of the
    words of its text within about a second; numbers in it wait for the next heartbeat.
    """

    DESCRIPTIONS: Mapping[str, str] = {
        "agent": "node agent: this machine's metrics, GPUs and engines",
        "handlers": "analysis: alerts, utilization, rollups, scaling advice, latest values",
        "cache": "RAM cache for KV blocks and LLM responses",
        "archive": "evicted cache entries, kept with a time to live",
        "executor": "carries accepted scaling advice out",
    }

    def __init__(
        self,
        bus: Bus,
        *,
        role: Role,
        name: str,
        node: str,
        identity: Identity,
        settings: HealthSettings,
        components: Callable[[], Sequence[Component]] = tuple,
        counters: Callable[[], Mapping[str, float]] = dict,
        labels: Mapping[str, str] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.bus = bus
        self.role = role
        self.name = name
        self.node = node
        self.registry = RegistryView(bus, clock)
        self.lost_name = asyncio.Event()
        self._identity = identity
        self._settings = settings
        self._components = components
        self._counters = counters
        self._labels = dict(labels or {})
        self._clock = clock
        self._started_ns = clock()
        self._registration = Registration(bus, clock)
        self._service: Service | None = None
        self._bus_probe = Component(
            name="bus", state="ok", text="connected", probed_at=instant(clock())
        )
        self._is_ready = False
        self._heart: asyncio.Task[None] | None = None

    def watch(
        self,
        components: Callable[[], Sequence[Component]],
        counters: Callable[[], Mapping[str, float]],
    ) -> None:
        """From now on report these parts and counters."""
        self._components = components
        self._counters = counters

    def record(self) -> InstanceRecord:
        """This service as it is now."""
        counters = {f"bus_{key}": float(value) for key, value in self.bus.counters.items()}
        return InstanceRecord(
            role=self.role,
            instance=self.name,
            node=self.node,
            machine=self._identity.machine,
            identity=self._identity.folder,
            boot=self._identity.boot,
            pid=self._identity.pid,
            version=VERSION,
            started_at=instant(self._started_ns),
            heartbeat_at=instant(self._clock()),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            ready=self._is_ready,
            components=[self._bus_probe, *self._components()],
            counters={**counters, **self._counters()},
            labels=self._labels,
        )

    async def __aenter__(self) -> Self:
        await self._registration.register(self.record())
        await self.registry.open()
        self._service = await self.bus.serve(
            f"fleet-{self.role}",
            health_endpoints(
                self.record,
                lambda: self.registry.records().values(),
                self._settings.expected_roles,
                self._clock,
            ),
            description=self.DESCRIPTIONS[self.role],
            metadata={"instance": self.name, "node": self.node, "boot": self._identity.boot},
        )
        self._heart = asyncio.create_task(self._beat_for_ever())
        return self

    @property
    def service_id(self) -> str:
        """Of this process alone: `$SRV.PING.fleet-<role>.<id>` is answered by nobody after it."""
        assert self._service is not None  # noqa: S101 - entered before
        return self._service.id

    async def serve(self, endpoints: Sequence[Endpoint]) -> Callable[[], Awaitable[None]]:
        """Serve more endpoints; returns a function that drains just these."""
        assert self._service is not None  # noqa: S101 - entered before
        return await self._service.add(endpoints)

    async def ready(self) -> None:
        """The service does its work from now on: say so at once."""
        self._is_ready = True
        await self._registration.beat(self.record())
        log.info("service_ready", role=self.role, instance=self.name)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_ready = False
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        if self._service is not None:
            await self._service.stop()
        await self.registry.close()
        if not self.lost_name.is_set():
            await self._registration.deregister(self.record(), "stopped")
        log.info("service_stopped", role=self.role, instance=self.name)

    async def _beat_for_ever(self) -> None:
        said: _Summary = {}
        beaten = time.monotonic()
        pause_seconds = FIRST_PROBE_SECONDS
        while True:
            # Much settles right after the start: look often then, more seldom later.
            await asyncio.sleep(min(pause_seconds, self._settings.probe_seconds))
            pause_seconds *= 2
            try:
                await self._probe_bus()
                now = self._summary()
                if time.monotonic() - beaten < self._quiet_seconds(said, now):
                    continue
                await self._registration.beat(self.record())
            except PublishError as error:
                log.warning("heartbeat_failed", role=self.role, error=str(error))
            except NameTakenError as error:
                log.error("name_lost", role=self.role, instance=self.name, error=str(error))
                self.lost_name.set()
                return
            except Exception:
                # A part that cannot tell its state must not silence the whole service.
                log.exception("heartbeat_failed", role=self.role)
            else:
                said, beaten = now, time.monotonic()

    def _quiet_seconds(self, said: _Summary, now: _Summary) -> float:
        """How long after the last heartbeat the next one is due."""
        if {name: state for name, (state, _) in said.items()} != {
            name: state for name, (state, _) in now.items()
        }:
            return 0.0
        return self._settings.heartbeat_seconds if said == now else WORDS_SECONDS

    def _summary(self) -> _Summary:
        return {
            c.name: (c.state, _NUMBER.sub("0", c.text))
            for c in (self._bus_probe, *self._components())
        }

    async def _probe_bus(self) -> None:
        text = "no answer"
        with contextlib.suppress(TimeoutError):
            seconds = await self.bus.round_trip_seconds(2.0)
            text = f"round trip {seconds * 1000:.1f} ms"
        self._bus_probe = Component(
            name="bus",
            state="failed" if text == "no answer" else "ok",
            text=text,
            probed_at=instant(self._clock()),
        )
