"""One minute of a group's GPUs and engines: what each did, drew and gave. Pure."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence

import msgspec

from handlers.columns import Numbers, Packed, Packer, known, mean, numbers
from handlers.settings import UtilizationSettings
from handlers.utilization.gpu_state import (
    ACTIVITY,
    JOULES,
    MEMORY,
    POWER,
    UTILIZATION,
    WATTS,
    WIDTH,
    GpuEvidence,
    GpuSample,
    PartKey,
    activity,
    gpu_sample,
    gpu_state,
)
from handlers.window import OfLast
from schemas.analysis import GpuState
from schemas.engines import EngineMetrics
from schemas.labels import FrozenLabels
from schemas.metrics import GpuMetrics

MINUTE_SECONDS = 60.0
# More than any GPU draws, or engine does: such a growth is another counter, not work.
MOST_WATTS = 10_000.0
MOST_TOKENS_PER_SECOND = 1e7
MAX_SAMPLES = 1024
"""Of one GPU or engine in a minute; further ones are not taken."""
MAX_NUMBERS = MAX_SAMPLES * WIDTH


class GpuMinute(msgspec.Struct, frozen=True, gc=False):
    """A GPU in a minute, by the means of its samples. None: not measured."""

    key: PartKey
    name: str | None
    pool: str | None
    simulated: bool
    state: GpuState | None
    utilization_ratio: float | None
    power_ratio: float | None
    energy_joules: float | None
    labels: FrozenLabels = ()
    """Of its node."""


class _Gpu(msgspec.Struct, gc=False):
    """A GPU's samples of the minute."""

    latest: GpuSample
    numbers: Numbers = msgspec.field(default_factory=numbers)

    def column(self, place: int) -> Numbers:
        """One number of each sample, NaN where not measured."""
        return self.numbers[place::WIDTH]


ENGINE_WIDTH = 5
PROMPT, PROMPT_RATE, GENERATION, GENERATION_RATE, RUNNING = range(ENGINE_WIDTH)
_engine_row = operator.attrgetter(
    "prompt_tokens_total",
    "prompt_tokens_per_second",
    "generation_tokens_total",
    "generation_tokens_per_second",
    "requests_running",
)
_packed_row = Packer(ENGINE_WIDTH)
_engine_sample: OfLast[EngineMetrics, Packed] = OfLast(lambda one: _packed_row(*_engine_row(one)))
"""Packed; an engine's node's, its pool's and the fleet's minute take it one after the other."""


class _Engine(msgspec.Struct, gc=False):
    """An engine's samples of the minute."""

    latest: EngineMetrics
    numbers: Numbers = msgspec.field(default_factory=numbers)

    def column(self, place: int) -> list[float]:
        """One number of each sample, where it was measured."""
        return known(self.numbers[place::ENGINE_WIDTH])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _grown(
    totals: Sequence[float],
    rate_of: Callable[[], float | None],
    before: float | None,
    most_per_second: float,
) -> float | None:
    """How much a counter rose in the minute; where that is not known, its rate times the minute.

    From `before`, the last value of the minute before, to the last of `totals`, its own. A
    counter that fell was reset, or a sample came late; one that began in this minute tells of a
    part of it.
    None also where the rate is more than anything can do.
    """
    if before is not None and totals:
        found = [before, *totals]
        grown = found[-1] - before
        has_fallen = found != sorted(found)
        # A growth of up to two minutes: the value before may be that old.
        if not has_fallen and grown <= most_per_second * 2 * MINUTE_SECONDS:
            return grown
    rate = rate_of()
    return None if rate is None or rate > most_per_second else rate * MINUTE_SECONDS


class GpuMinutes:
    """One minute of one group. O(1) a sample.

    A GPU with MIG counts itself, by the busiest of its instances where its own activity is not
    measured; its instances do not count.
    """

    def __init__(self) -> None:
        self._gpus: dict[PartKey, _Gpu] = {}
        self._engines: dict[PartKey, _Engine] = {}
        self._instances: dict[PartKey, dict[str, list[float | None]]] = {}
        self._waiting: Iterator[tuple[PartKey, _Gpu]] | None = None
        self._minutes: list[GpuMinute] = []
        self._requests: dict[str, float] = {}
        self._joules_before: dict[PartKey, float | None] = {}
        self._joules: dict[PartKey, float | None] = {}
        """Of the GPUs that were judged, the counters' last values."""
        self._tokens_before: dict[PartKey, tuple[float | None, float | None]] = {}

    def add_gpu(self, message: GpuMetrics) -> None:
        """Take a sample of a GPU, or of a MIG instance."""
        if message.parent is not None:
            instances = self._instances.setdefault((message.node, message.parent), {})
            ratios = instances.setdefault(message.gpu, [])
            if len(ratios) < MAX_SAMPLES:
                ratios.append(activity(message)[0])
            return
        sample = gpu_sample(message)
        gpu = self._gpus.get(sample.key)
        if gpu is None:
            gpu = self._gpus[sample.key] = _Gpu(sample)
        of_gpu = gpu.numbers
        if len(of_gpu) < MAX_NUMBERS:
            gpu.latest = sample
            of_gpu.frombytes(sample.numbers)

    def add_engine(self, message: EngineMetrics) -> None:
        """Take a sample of an engine."""
        key = (message.node, message.engine)
        engine = self._engines.get(key)
        if engine is None:
            engine = self._engines[key] = _Engine(message)
        if len(engine.numbers) < MAX_SAMPLES * ENGINE_WIDTH:
            engine.latest = message
            engine.numbers.frombytes(_engine_sample(message))

    def close(
        self, settings: UtilizationSettings
    ) -> tuple[list[GpuMinute], dict[bool, tuple[float | None, float | None]]]:
        """The GPUs of the minute, by name; and the tokens read and written, by `simulated`.

        Tokens are None where no engine told.
        """
        self.judge_some(settings, len(self._gpus))
        given: dict[bool, list[tuple[float | None, float | None]]] = {}
        for key in sorted(self._engines):
            engine = self._engines[key]
            given.setdefault(engine.latest.simulated, []).append(self._tokens(key, engine))
        tokens = {
            simulated: (_total([one[0] for one in of]), _total([one[1] for one in of]))
            for simulated, of in given.items()
        }
        return self._minutes, tokens

    @property
    def gpus(self) -> int:
        """How many GPUs count."""
        return len(self._gpus)

    def judge_some(self, settings: UtilizationSettings, count: int) -> None:
        """Judge so many further GPUs, once the minute is over: `close` has less to do then."""
        if self._waiting is None:
            self._waiting = iter(sorted(self._gpus.items(), key=operator.itemgetter(0)))
            self._requests = self._running()
        for (node, _), gpu in itertools.islice(self._waiting, count):
            self._minutes.append(self._judge(gpu, self._requests.get(node), settings))

    def follow(self, before: "GpuMinutes") -> None:
        """Take over the counters' last values from the minute before, which was closed."""
        self._joules_before = before._joules
        self._tokens_before = {
            key: (_last(engine.column(PROMPT)), _last(engine.column(GENERATION)))
            for key, engine in before._engines.items()
        }

    @property
    def has_samples(self) -> bool:
        """Of GPUs or engines that count."""
        return bool(self._gpus or self._engines)

    @property
    def pool(self) -> str | None:
        """Of any of its GPUs, else engines; for a node, whose parts are in one as a rule."""
        for gpu in self._gpus.values():
            if gpu.latest.pool is not None:
                return gpu.latest.pool
        return next((engine.latest.pool for engine in self._engines.values()), None)

    def _running(self) -> dict[str, float]:
        """Requests running by node, where an engine told."""
        running: dict[str, float] = {}
        for (node, _), engine in self._engines.items():
            of_engine = _mean(engine.column(RUNNING))
            if of_engine is not None:
                running[node] = running.get(node, 0.0) + of_engine
        return running

    def _judge(self, gpu: _Gpu, running: float | None, settings: UtilizationSettings) -> GpuMinute:
        latest = gpu.latest
        ratio, source = mean(gpu.column(ACTIVITY)), latest.source
        if ratio is None and latest.key in self._instances:
            means = [
                _mean([ratio for ratio in ratios if ratio is not None])
                for ratios in self._instances[latest.key].values()
            ]
            ratio, source = max((mean for mean in means if mean is not None), default=None), "mig"
        evidence = GpuEvidence(
            activity_ratio=ratio,
            activity_source=source,
            memory_ratio=mean(gpu.column(MEMORY)),
            power_ratio=mean(gpu.column(POWER)),
            requests_running=running,
        )
        before, joules = self._joules_before.get(latest.key), known(gpu.column(JOULES))
        self._joules[latest.key] = _last(joules)
        return GpuMinute(
            key=latest.key,
            name=latest.name,
            pool=latest.pool,
            simulated=latest.simulated,
            state=gpu_state(settings, evidence)[0],
            utilization_ratio=mean(gpu.column(UTILIZATION)),
            power_ratio=evidence.power_ratio,
            energy_joules=_grown(joules, lambda: mean(gpu.column(WATTS)), before, MOST_WATTS),
            labels=latest.labels,
        )

    def _tokens(self, key: PartKey, engine: _Engine) -> tuple[float | None, float | None]:
        """Read and written in the minute."""
        prompt, generation = self._tokens_before.get(key, (None, None))
        most = MOST_TOKENS_PER_SECOND
        return (
            _grown(engine.column(PROMPT), lambda: _mean(engine.column(PROMPT_RATE)), prompt, most),
            _grown(
                engine.column(GENERATION),
                lambda: _mean(engine.column(GENERATION_RATE)),
                generation,
                most,
            ),
        )


def _total(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None
