"""Samples every GPU in a thread of its own, so that one that hangs costs only itself."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from agent.blocking import BlockingThread
from agent.collectors.gpu import GpuBackend, GpuSource, NoGpuError
from schemas.lifecycle import ComponentState
from schemas.metrics import GpuMetrics
from schemas.units import instant

_NOT_LISTED = "the driver does not list it any more"


class GpuSampler:
    """All GPUs of this node, by one backend or several.

    A sample never raises and never takes longer than `timeout_seconds`, twice that when the driver
    is opened; for a call that hung before it does not wait at all. Every GPU that was seen once is
    in every sample: one that is lost, hangs or was removed is there as unreachable, with the
    reason. A driver that is not there, that has lost all its GPUs, or whose GPUs came or went, is
    opened again every `rescan_seconds`, but not while a call into it hangs.
    """

    def __init__(
        self,
        backends: Sequence[GpuBackend],
        *,
        timeout_seconds: float,
        rescan_seconds: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters: Counter[str] = Counter(gpu_failures_total=0, gpu_timeouts_total=0)
        self._clock = clock
        self._drivers = [
            _Driver(backend, timeout_seconds, rescan_seconds, self.counters) for backend in backends
        ]
        self._sampling: asyncio.Task[list[GpuMetrics]] | None = None
        self._seen: dict[str, GpuMetrics] = {}
        self._latest: list[GpuMetrics] = []

    async def sample(self) -> list[GpuMetrics]:
        """All GPUs now; who asks meanwhile gets the same sample."""
        if self._sampling is None or self._sampling.done():
            self._sampling = asyncio.create_task(self._sample())
        return await asyncio.shield(self._sampling)

    def state(self) -> tuple[ComponentState, str]:
        """How the last sample went, for health."""
        if not self._latest:
            texts = [driver.trouble for driver in self._drivers if driver.trouble]
            return "degraded" if self._faults() else "off", "; ".join(texts)
        lost = [gpu for gpu in self._latest if not gpu.is_reachable]
        if lost:
            text = f"{lost[0].gpu}: {lost[0].errors.get('gpu')}"
            if len(lost) > 1:
                text += f", and {len(lost) - 1} more"
            return "failed" if len(lost) == len(self._latest) else "degraded", text
        if self._faults():
            return "degraded", "; ".join(self._faults())
        by = ", ".join(driver.name for driver in self._drivers if driver.has_gpus)
        return "ok", f"{len(self._latest)} by {by}"

    def close(self) -> None:
        """Let the drivers go; waits for nothing."""
        if self._sampling is not None:
            self._sampling.cancel()
        for driver in self._drivers:
            driver.close()

    async def _sample(self) -> list[GpuMetrics]:
        rounds = await asyncio.gather(*(driver.sample() for driver in self._drivers))
        found = [gpu for one in rounds for gpu in one]
        present = {gpu.gpu for gpu in found}
        for driver in self._drivers:
            for gpu in driver.identities():
                if gpu.uuid:  # without one it has no name to be missed by
                    self._seen[gpu.gpu] = gpu
        answered = {gpu.gpu for gpu in found if gpu.is_reachable}
        for gpu in list(self._seen.values()):
            if gpu.gpu in present:
                continue
            if gpu.parent in answered:  # an instance that its GPU no longer has
                del self._seen[gpu.gpu]
            else:
                found.append(unreachable(gpu, "; ".join(self._faults()) or _NOT_LISTED))
        at = instant(self._clock())
        self._latest = [
            gpu if gpu.is_reachable else msgspec.structs.replace(gpu, observed_at=at)
            for gpu in found
        ]
        return self._latest

    def _faults(self) -> list[str]:
        return [driver.trouble for driver in self._drivers if driver.is_degraded]


class _Asked:
    """A source, its thread, and the call that it has not yet answered."""

    def __init__(self, source: GpuSource, name: str) -> None:
        self.source = source
        self.thread = BlockingThread(name)
        self.call: asyncio.Task[list[GpuMetrics]] | None = None


class _Driver:
    """One backend in its thread, and its GPUs in theirs."""

    def __init__(
        self,
        backend: GpuBackend,
        timeout_seconds: float,
        rescan_seconds: float,
        counters: "Counter[str]",
    ) -> None:
        self.name = backend.name
        self.trouble = ""
        self.is_degraded = False
        self._backend = backend
        self._timeout = timeout_seconds
        self._rescan = rescan_seconds
        self._counters = counters
        self._thread = BlockingThread(f"{self.name}-driver")
        self._opening: asyncio.Task[Sequence[GpuSource] | None] | None = None
        self._next_opening = 0.0
        self._is_open = False
        self._asked: list[_Asked] = []
        self._all_lost = False

    @property
    def has_gpus(self) -> bool:
        return bool(self._asked)

    def identities(self) -> list[GpuMetrics]:
        return [gpu for asked in self._asked for gpu in asked.source.identities()]

    async def sample(self) -> list[GpuMetrics]:
        await self._open()
        return await self._ask() if self._opening is None else []

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        is_hung = self._opening is not None or any(asked.call for asked in self._asked)
        self._leave()
        # Under a call that hangs the driver may not be closed; the process ends without.
        self._thread.close(lambda: None if is_hung else self._backend.close())

    async def _open(self) -> None:
        """Open the driver, or look whether its GPUs changed, if it is time for that."""
        now = asyncio.get_running_loop().time()
        if self._opening is None:
            if now < self._next_opening or any(asked.call for asked in self._asked):
                return
            self._next_opening = now + self._rescan
            self._opening = asyncio.create_task(self._thread.run(self._reopen))
            await asyncio.wait({self._opening}, timeout=self._timeout)
        if not self._opening.done():
            self._counters["gpu_timeouts_total"] += 1
            self.trouble = f"{self.name}: no answer in {self._timeout:g} s while it starts"
            self.is_degraded = True
            return
        opening, self._opening = self._opening, None
        try:
            sources = opening.result()
        except NoGpuError as error:
            self._fail(error.text, is_degraded=error.degraded)
        except Exception as error:
            # A driver's library can fail in any way; the node's other metrics must not.
            self._counters["gpu_failures_total"] += 1
            self._fail(f"{self.name} does not start: {error!r}", is_degraded=True)
        else:
            self.trouble, self.is_degraded, self._is_open = "", False, True
            if sources is not None:
                self._leave()
                self._asked = [
                    _Asked(source, f"{self.name}-{index}") for index, source in enumerate(sources)
                ]

    def _reopen(self) -> Sequence[GpuSource] | None:
        """The GPUs; None: as they were. Runs while no other call into the driver is under way."""
        if self._is_open:
            if not self._all_lost and not self._backend.has_changed():
                return None
            self._backend.close()
        return self._backend.open()

    def _fail(self, text: str, *, is_degraded: bool) -> None:
        self.trouble, self.is_degraded, self._is_open = text, is_degraded, False
        self._leave()

    def _leave(self) -> None:
        for asked in self._asked:
            if asked.call is not None:
                asked.call.cancel()
            asked.thread.close()
        self._asked = []

    async def _ask(self) -> list[GpuMetrics]:
        """Ask all that are not still at an earlier question, and wait for these."""
        fresh = set()
        for asked in self._asked:
            if asked.call is None:
                asked.call = asyncio.create_task(asked.thread.run(asked.source.sample))
                fresh.add(asked.call)
        if fresh:
            await asyncio.wait(fresh, timeout=self._timeout)
        found = [gpu for asked in self._asked for gpu in self._answer(asked)]
        self._all_lost = bool(found) and not any(gpu.is_reachable for gpu in found)
        return found

    def _answer(self, asked: _Asked) -> list[GpuMetrics]:
        if asked.call is None or not asked.call.done():
            self._counters["gpu_timeouts_total"] += 1
            why = f"no answer in {self._timeout:g} s: the driver hangs"
            return [unreachable(gpu, why) for gpu in asked.source.identities()]
        call, asked.call = asked.call, None
        try:
            return call.result()
        except Exception as error:
            # One bad reading must not stop the others, or the next sample of this GPU.
            self._counters["gpu_failures_total"] += 1
            return [unreachable(gpu, repr(error)) for gpu in asked.source.identities()]


def unreachable(gpu: GpuMetrics, why: str) -> GpuMetrics:
    """`gpu`, an identity without readings, as one that does not answer."""
    return msgspec.structs.replace(gpu, is_reachable=False, errors=gpu.errors | {"gpu": why})
