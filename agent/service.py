"""The node agent: samples this machine, its GPUs and engines, publishes, answers for itself."""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

import msgspec
import structlog

from agent.blocking import BlockingThread
from agent.gpus import GpuSampler
from agent.human import reason
from agent.settings import AgentSettings
from schemas.api import LatestReply, Nothing, Row
from schemas.engines import EngineMetrics
from schemas.lifecycle import Component
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Call, Endpoint, Publisher, PublishError, RequestError, json_endpoint
from schemas.units import SECOND_NS, instant, to_ns
from schemas.views import GPU_VIEWS, SYSTEM_VIEWS, gpu_values, system_values

log = structlog.get_logger()

T = TypeVar("T")
FRESH_NS = SECOND_NS
GOODBYE_SECONDS = 1.0

COUNTERS = (
    "host_failures_total",
    "host_timeouts_total",
    "publish_failures_total",
    "samples_total",
)
"""What the agent counts, besides its GPUs and engines."""


class HostSource(Protocol):
    """Samples the machine; blocking, called from one thread."""

    def sample(self, *, with_processes: bool = False) -> HostMetrics:
        """One sample."""


class EngineSource(Protocol):
    """Samples engines; does not block."""

    def sample(self) -> list[EngineMetrics]:
        """One sample of every engine."""


class NodeAgent:
    """Publishes host, GPU and engine metrics on one interval, the process table on another.

    An async context manager. Sampling runs in one thread for the host and one for each GPU, never
    on the event loop; a GPU that hangs past its deadline costs only its own samples. What fails is
    counted, logged once per cause, and shown in `components`.
    """

    def __init__(
        self,
        publisher: Publisher,
        settings: AgentSettings,
        *,
        node: str,
        host: HostSource,
        query_host: HostSource | None = None,
        gpus: GpuSampler,
        engines: EngineSource | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters: Counter[str] = gpus.counters  # one set for all that the agent counts
        self.counters.update(dict.fromkeys(COUNTERS, 0))
        self._publisher = publisher
        self._settings = settings
        self._node = node
        self._host = host
        self._query_host = query_host or host
        self._gpus = gpus
        self._engines = engines
        self._clock = clock
        self._host_thread = BlockingThread("host-sampler")
        self._host_busy: asyncio.Task[HostMetrics] | None = None
        self._query_busy: asyncio.Task[HostMetrics] | None = None
        self._host_latest: HostMetrics | None = None
        self._gpus_latest: list[GpuMetrics] = []
        self._queried: HostMetrics | None = None
        self._gpus_at_ns = 0
        self._said: set[str] = set()
        self._said_no_gpu = False
        self._trouble: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        if self._query_host is not self._host:
            # The first sample of a collector has no rates: let it be nobody's answer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.host_timeout_seconds):
                    await self._host_thread.run(self._query_host.sample)
        return self

    async def wait_ready(self) -> None:
        """Return once the first samples are published."""
        await self._first.wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._say_goodbye()
        for busy in (self._host_busy, self._query_busy):
            if busy is not None:
                busy.cancel()
        self._host_thread.close()
        self._gpus.close()

    async def _say_goodbye(self) -> None:
        """One last sample, marked, so that nobody takes the silence for a fault."""
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                sample = await self._host_thread.run(self._host.sample)
                await self._publisher.publish(msgspec.structs.replace(sample, leaving=True))
        except Exception as error:
            log.warning("goodbye_failed", error=reason(error))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        next_processes = next_at
        while True:
            with_processes = loop.time() >= next_processes
            if with_processes:
                next_processes = loop.time() + self._settings.process_interval_seconds
            await self._publish_all(with_processes)
            self._first.set()
            next_at += self._settings.interval_seconds
            if next_at < loop.time():
                # A stopped machine wakes up: no burst of samples to catch up.
                next_at = loop.time() + self._settings.interval_seconds
            await asyncio.sleep(next_at - loop.time())

    async def _publish_all(self, with_processes: bool) -> None:
        host = await self._sample_host(with_processes)
        await self._publish([*([host] if host else []), *self._sample_engines()])
        await self._publish(await self._sample_gpus())
        self.counters["samples_total"] += 1

    async def _publish(self, messages: Sequence[Message]) -> None:
        for message in messages:
            try:
                await self._publisher.publish(message)
            except PublishError as error:
                self.counters["publish_failures_total"] += 1
                self._say("publish", str(error))

    async def _sample_host(self, with_processes: bool) -> HostMetrics | None:
        if self._host_busy is None or self._host_busy.done():
            self._host_busy = asyncio.create_task(
                self._host_thread.run(
                    functools.partial(self._host.sample, with_processes=with_processes)
                )
            )
        elif "host" in self._trouble:
            # It hangs since an earlier round: waiting again would slow down the GPUs' samples.
            self.counters["host_timeouts_total"] += 1
            return None
        try:
            async with asyncio.timeout(self._settings.host_timeout_seconds):
                sample = await asyncio.shield(self._host_busy)
        except TimeoutError:
            self.counters["host_timeouts_total"] += 1
            self._say("host", f"no sample in {self._settings.host_timeout_seconds:g} s")
            return None
        except Exception as error:
            # One bad sensor must not stop the others, or the next sample of this one.
            self.counters["host_failures_total"] += 1
            self._say("host", reason(error))
            return None
        self._trouble.pop("host", None)
        for field, text in sample.errors.items():
            self._say(f"host.{field}", text, is_trouble=False)
        self._host_latest = sample
        return sample

    async def _sample_gpus(self) -> list[GpuMetrics]:
        samples = await self._gpus.sample()
        self._gpus_at_ns = self._clock()
        for sample in samples:
            for field, text in sample.errors.items():
                self._say(f"gpu.{sample.gpu}.{field}", text, is_trouble=False)
        state, text = self._gpus.state()
        if state == "off" and not self._said_no_gpu:
            self._said_no_gpu = True
            log.info("no_gpu", reason=text)
        elif state == "degraded" and not samples:
            self._say("gpu", text, is_trouble=False)
        self._gpus_latest = samples
        return samples

    def _sample_engines(self) -> list[EngineMetrics]:
        return self._engines.sample() if self._engines is not None else []

    def _say(self, part: str, text: str, *, is_trouble: bool = True) -> None:
        if is_trouble:
            self._trouble[part] = text
        if (line := f"{part}: {text}") not in self._said and len(self._said) < 1000:
            self._said.add(line)
            log.warning("reading_failed", part=part, error=text)

    async def _fresh_host(self) -> HostMetrics:
        """The last sample if it is fresh, else one of the queries' own.

        They have a collector of their own: rates are differences to its previous sample, that of
        the last query, and a query must not shorten the interval of what is published.
        """
        hosts = [host for host in (self._host_latest, self._queried) if host is not None]
        host = max(hosts, key=lambda one: one.observed_at, default=None)
        if host is not None and self._clock() - to_ns(host.observed_at) <= FRESH_NS:
            return host
        busy = self._query_busy
        if busy is None or busy.done():
            busy = self._query_busy = asyncio.create_task(
                self._host_thread.run(self._query_host.sample)
            )
        try:
            async with asyncio.timeout(self._settings.host_timeout_seconds):
                self._queried = await asyncio.shield(busy)
        except TimeoutError:
            raise RequestError(503, "the host does not answer in time") from None
        except Exception as error:
            self._say("host", reason(error))
            raise RequestError(
                503, "the host could not be read; the agent's log says why"
            ) from error
        return self._queried

    async def _fresh_gpus(self) -> list[GpuMetrics]:
        if self._clock() - self._gpus_at_ns > FRESH_NS:
            await self._sample_gpus()
        return self._gpus_latest

    def endpoints(self) -> list[Endpoint]:
        """`api.system.<name>.<node>` and `api.gpu.<name>.<node>`: fresh, at most a second old."""
        endpoints = []
        for name in SYSTEM_VIEWS:

            async def system(_request: Nothing, _call: Call, name: str = name) -> LatestReply:
                host = await self._fresh_host()
                return self._reply([self._row(host, None, system_values(name, host))])

            endpoints.append(self._endpoint("system", name, system))
        for name in GPU_VIEWS:

            async def gpu(_request: Nothing, _call: Call, name: str = name) -> LatestReply:
                gpus = await self._fresh_gpus()
                rows = [self._row(one, one.gpu, gpu_values(name, one)) for one in gpus]
                return self._reply(rows, "" if rows else self._gpus.state()[1])

            endpoints.append(self._endpoint("gpu", name, gpu))
        return endpoints

    def _endpoint(
        self, group: str, name: str, handle: Callable[[Nothing, Call], Awaitable[LatestReply]]
    ) -> Endpoint:
        return json_endpoint(
            f"{group}-{name}-here",
            f"api.{group}.{name}.{self._node}",
            Nothing,
            handle,
            reply_type=LatestReply,
        )

    def _row(
        self, sample: HostMetrics | GpuMetrics, gpu: str | None, values: Mapping[str, object]
    ) -> Row:
        age_ns = self._clock() - to_ns(sample.observed_at)
        return Row(
            node=self._node,
            gpu=gpu,
            pool=sample.pool,
            observed_at=sample.observed_at,
            age_seconds=max(0.0, age_ns / SECOND_NS),
            simulated=sample.simulated,
            values=dict(values),
        )

    def _reply(self, rows: Sequence[Row], text: str = "") -> LatestReply:
        return LatestReply(
            answered_at=instant(self._clock()), rows=list(rows), total=len(rows), text=text
        )

    def gpu_uuids(self) -> frozenset[str]:
        """The GPUs that were in the last sample."""
        return frozenset(gpu.uuid for gpu in self._gpus_latest)

    def components(self) -> list[Component]:
        """Host and GPU sampling, each as old as its last sample."""
        host = self._host_latest
        parts = [
            Component(
                name="host",
                state="failed" if host is None or "host" in self._trouble else "ok",
                text=self._trouble.get("host", "sampled"),
                probed_at=host.observed_at if host else instant(self._clock()),
            )
        ]
        state, text = self._gpus.state()
        parts.append(
            Component(
                name="gpus",
                state=state,
                text=text,
                probed_at=instant(self._gpus_at_ns or self._clock()),
            )
        )
        return parts
