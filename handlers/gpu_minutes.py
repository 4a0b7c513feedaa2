"""One minute of a group's GPUs and engines: what each did, drew and gave. Pure."""

import dataclasses

from handlers.gpu_state import GpuEvidence, activity, gpu_state, power_ratio
from handlers.settings import UtilizationSettings
from schemas.analysis import GpuState
from schemas.engines import EngineMetrics
from schemas.metrics import GpuMetrics

MINUTE_SECONDS = 60.0
# More than any GPU draws, or engine does: such a growth is another counter, not work.
MOST_WATTS = 10_000.0
MOST_TOKENS_PER_SECOND = 1e7

PartKey = tuple[str, str]
"""Node and GPU, or node and engine."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuMinute:
    """A GPU in a minute, by the means of its samples. None: not measured."""

    key: PartKey
    name: str | None
    pool: str | None
    simulated: bool
    state: GpuState | None
    utilization_ratio: float | None
    power_ratio: float | None
    energy_joules: float | None


class _Mean:
    """Sum and count of what was measured."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class _Growth:
    """How much a counter rose in the minute; where that is not known, its rate times the minute.

    From the last value of the minute before to the last of this one. A counter that fell was
    reset, or a sample came late; one that began in this minute has told of a part of it only.
    """

    __slots__ = ("_began", "_grown", "_is_broken", "_most_per_second", "_rate", "last")

    def __init__(self, most_per_second: float, before: float | None) -> None:
        self._most_per_second = most_per_second
        self._began = before is not None
        self._grown = 0.0
        self._is_broken = False
        self._rate = _Mean()
        self.last = before

    def add(self, total: float | None, rate: float | None) -> None:
        self._rate.add(rate)
        if total is None:
            return
        if self.last is not None:
            if total >= self.last:
                self._grown += total - self.last
            else:
                self._is_broken = True
        self.last = total

    def value(self) -> float | None:
        # A growth of up to two minutes: the last sample may be that old.
        most = self._most_per_second * 2 * MINUTE_SECONDS
        if self._began and self.last is not None and not self._is_broken and self._grown <= most:
            return self._grown
        rate = self._rate.value()
        return None if rate is None else rate * MINUTE_SECONDS


class _Gpu:
    """A GPU's samples of the minute."""

    __slots__ = ("activity", "energy", "latest", "memory", "power", "source", "utilization")

    def __init__(self, latest: GpuMetrics, joules_before: float | None) -> None:
        self.latest = latest
        self.source: str | None = None
        self.activity, self.utilization, self.memory, self.power = (_Mean() for _ in range(4))
        self.energy = _Growth(MOST_WATTS, joules_before)

    def add(self, message: GpuMetrics) -> None:
        self.latest = message
        ratio, self.source = activity(message)
        self.activity.add(ratio)
        self.utilization.add(message.utilization_ratio)
        self.memory.add(message.memory_utilization_ratio)
        self.power.add(power_ratio(message))
        self.energy.add(message.energy_joules_total, message.power_watts)


class _Engine:
    """An engine's samples of the minute."""

    __slots__ = ("generation", "pool", "prompt", "running", "simulated")

    def __init__(self, before: "_Engine | None") -> None:
        self.prompt: _Growth = _Growth(
            MOST_TOKENS_PER_SECOND, before.prompt.last if before else None
        )
        self.generation: _Growth = _Growth(
            MOST_TOKENS_PER_SECOND, before.generation.last if before else None
        )
        self.running = _Mean()
        self.simulated = False
        self.pool: str | None = None

    def add(self, message: EngineMetrics) -> None:
        self.prompt.add(message.prompt_tokens_total, message.prompt_tokens_per_second)
        self.generation.add(message.generation_tokens_total, message.generation_tokens_per_second)
        self.running.add(message.requests_running)
        self.simulated |= message.simulated
        self.pool = message.pool


class GpuMinutes:
    """The open minute of one group; `close` gives it out and begins the next.

    O(1) a sample. A GPU with MIG counts itself, by the busiest of its instances where its own
    activity is not measured; its instances do not count.
    """

    def __init__(self) -> None:
        self._gpus: dict[PartKey, _Gpu] = {}
        self._engines: dict[PartKey, _Engine] = {}
        self._instances: dict[PartKey, dict[str, _Mean]] = {}
        self._joules_before: dict[PartKey, float | None] = {}
        self._engines_before: dict[PartKey, _Engine] = {}

    def add_gpu(self, message: GpuMetrics) -> None:
        """Take a sample of a GPU, or of a MIG instance."""
        if message.parent is not None:
            instances = self._instances.setdefault((message.node, message.parent), {})
            instances.setdefault(message.gpu, _Mean()).add(activity(message).ratio)
            return
        key = (message.node, message.gpu)
        gpu = self._gpus.get(key)
        if gpu is None:
            gpu = self._gpus[key] = _Gpu(message, self._joules_before.get(key))
        gpu.add(message)

    def add_engine(self, message: EngineMetrics) -> None:
        """Take a sample of an engine."""
        key = (message.node, message.engine)
        engine = self._engines.get(key)
        if engine is None:
            engine = self._engines[key] = _Engine(self._engines_before.get(key))
        engine.add(message)

    def close(
        self, settings: UtilizationSettings
    ) -> tuple[list[GpuMinute], dict[bool, tuple[float | None, float | None]]]:
        """The GPUs of the minute, by name; and the tokens read and written, by `simulated`.

        Tokens are None where no engine told.
        """
        running = self._running()
        minutes = [
            self._judge(key, gpu, running.get(key[0]), settings)
            for key, gpu in sorted(self._gpus.items())
        ]
        tokens = {
            simulated: (
                _total([e.prompt.value() for e in engines]),
                _total([e.generation.value() for e in engines]),
            )
            for simulated in (False, True)
            if (engines := [e for e in self._engines.values() if e.simulated is simulated])
        }
        self._joules_before = {key: gpu.energy.last for key, gpu in self._gpus.items()}
        self._engines_before = self._engines
        self._gpus, self._engines, self._instances = {}, {}, {}
        return minutes, tokens

    @property
    def pool(self) -> str | None:
        """Of any of its GPUs, else engines; for a node, whose parts are in one as a rule."""
        for gpu in self._gpus.values():
            if gpu.latest.pool is not None:
                return gpu.latest.pool
        return next((engine.pool for engine in self._engines.values()), None)

    def _running(self) -> dict[str, float]:
        """Requests running by node, where an engine told."""
        running: dict[str, float] = {}
        for (node, _), engine in self._engines.items():
            mean = engine.running.value()
            if mean is not None:
                running[node] = running.get(node, 0.0) + mean
        return running

    def _judge(
        self, key: PartKey, gpu: _Gpu, running: float | None, settings: UtilizationSettings
    ) -> GpuMinute:
        ratio, source, power = gpu.activity.value(), gpu.source, gpu.power.value()
        if ratio is None and key in self._instances:
            means = [mean.value() for mean in self._instances[key].values()]
            ratio, source = max((m for m in means if m is not None), default=None), "mig"
        evidence = GpuEvidence(
            activity_ratio=ratio,
            activity_source=source,
            memory_ratio=gpu.memory.value(),
            power_ratio=power,
            requests_running=running,
        )
        return GpuMinute(
            key=key,
            name=gpu.latest.name,
            pool=gpu.latest.pool,
            simulated=gpu.latest.simulated,
            state=gpu_state(settings, evidence).state,
            utilization_ratio=gpu.utilization.value(),
            power_ratio=power,
            energy_joules=gpu.energy.value(),
        )


def _total(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
