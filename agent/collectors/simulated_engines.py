"""A simulated pool of inference engines, for a machine that has none."""

import math
import random
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from schemas.engines import EngineMetrics
from schemas.units import SECOND_NS, instant, token


class EngineModel(NamedTuple):
    """How fast one replica serves one model; round figures for one node of H100s.

    A decode step takes `step_seconds` plus `step_seconds_per_request` for each running request.
    """

    requests_running_max: int
    kv_cache_tokens: int
    prompt_tokens: int
    output_tokens: int
    prefill_tokens_per_second: float
    step_seconds: float
    step_seconds_per_request: float


ENGINE_MODELS = {
    "llama-3-8b": EngineModel(128, 200_000, 1200, 250, 40_000, 0.008, 0.00006),
    "llama-3-70b": EngineModel(64, 120_000, 1500, 300, 12_000, 0.020, 0.00025),
    "qwen-2.5-32b": EngineModel(96, 150_000, 1200, 300, 20_000, 0.014, 0.00015),
}
DEFAULT_ENGINE_MODEL = "llama-3-8b"
_STEP_SECONDS = 0.25
_LONGEST_GAP_SECONDS = 600.0
_RAMP_SECONDS = 480.0
_RAMP_LOWEST, _RAMP_HIGHEST = 0.1, 1.3
_PROMPT_P95_FACTOR = 2.0  # the 95th percentile of prompt lengths over their mean
_STEP_P95_FACTOR = 1.4  # a step that shares its time with a prefill


def parse_engines(text: str) -> tuple[int, str]:
    """`4@llama-3-70b` → (4, "llama-3-70b"); `4` alone means `4@llama-3-8b`.

    Raises:
        ValueError: anything else, with an example.
    """
    match = re.fullmatch(r"(\d{1,3})(?:@(.+))?", text.strip())
    model = (match and match[2]) or DEFAULT_ENGINE_MODEL
    if match is None or model not in ENGINE_MODELS or int(match[1]) == 0:
        raise ValueError(
            f"{text!r} does not name simulated engines: write for instance 4@llama-3-70b; "
            f"models: {', '.join(ENGINE_MODELS)}"
        )
    return int(match[1]), model


class _Replica:
    """One engine: a queue in front of a batch. Requests are a fluid, so fractions occur."""

    def __init__(self, engine: str, arrival_phase: float) -> None:
        self.engine = engine
        self.arrival_phase = arrival_phase
        self.running = 0.0
        self.waiting = 0.0
        self.prompt_tokens = 0.0
        self.generation_tokens = 0.0
        self.reported_tokens = (0, 0)


class SimulatedEngines:
    """A pool of engine replicas under a load that changes; always `simulated`.

    With r running and w waiting requests, per replica:

    - inter-token latency `itl(r) = step_seconds + step_seconds_per_request · r`,
    - time in the batch `service(r) = prompt_tokens / prefill rate + output_tokens · itl(r)`,
    - completions per second `r / service(r)`; a free place is taken by a waiting request,
    - places: the batch limit, or as many mean requests as fit the KV cache if that is less,
    - KV-cache use `r · (prompt_tokens + output_tokens / 2) / kv_cache_tokens`,
    - TTFT p95 `w / throughput at full batch + 2 · prompt_tokens / prefill rate`: the wait of a
      request that arrives now, and the prefill of a long prompt,
    - ITL p95 `1.4 · itl(r)`; both latencies are null while nothing runs.

    Arrivals are split evenly, ±10 % per replica in slow seeded waves. Unless `set_load` fixes the
    rate, it swings once in eight minutes between 10 % and 130 % of what the first replicas can
    serve: every run passes through both scale-up and scale-down. State depends only on seed, clock
    readings and calls. Not thread-safe.
    """

    def __init__(
        self,
        count: int,
        model: str = DEFAULT_ENGINE_MODEL,
        *,
        node: str,
        pool: str | None = None,
        seed: int = 0,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._model_name = model
        self._model = ENGINE_MODELS[model]
        self._node = node
        self.pool = pool or token(model)
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._clock = clock
        self._started_ns = self._advanced_ns = clock()
        self._sampled_ns: int | None = None
        self._fixed_load: float | None = None
        self._replicas: list[_Replica] = []
        self._pattern_requests_per_second = max(1, count) * self.requests_per_second_max
        self.set_replicas(count)

    @property
    def requests_per_second_max(self) -> float:
        """What one replica can serve for ever: a full batch over its service time."""
        return self._capacity / self._service_seconds(self._capacity)

    def set_load(self, requests_per_second: float | None) -> None:
        """Fix the arrival rate of the whole pool from now on; None returns to the default swing.

        Raises:
            ValueError: the rate is negative.
        """
        if requests_per_second is not None and requests_per_second < 0:
            raise ValueError(f"a load of {requests_per_second} requests per second")
        self._advance()
        self._fixed_load = requests_per_second

    def set_replicas(self, count: int) -> None:
        """Add idle replicas, or remove the last ones; their requests queue at the others.

        With none left, requests are lost.
        """
        self._advance()
        while len(self._replicas) < count:
            phase = self._random.uniform(0.0, 2 * math.pi)
            self._replicas.append(_Replica(f"sim-{len(self._replicas)}", phase))
        removed, self._replicas = self._replicas[count:], self._replicas[:count]
        orphans = sum(replica.running + replica.waiting for replica in removed)
        for replica in self._replicas:
            replica.waiting += orphans / count

    def load_ratio(self, position: float) -> float:
        """Batch fill, 0 to 1, of the replica that serves `position` (0 to 1) of the node's GPUs."""
        if not self._replicas:
            return 0.0
        index = min(len(self._replicas) - 1, int(position * len(self._replicas)))
        return self._replicas[index].running / self._capacity

    def sample(self) -> list[EngineMetrics]:
        """Every replica now; rates are since the previous sample, null in the first."""
        now_ns = self._advance()
        elapsed = 0.0 if self._sampled_ns is None else (now_ns - self._sampled_ns) / SECOND_NS
        self._sampled_ns = now_ns
        return [self._metrics(replica, now_ns, elapsed) for replica in self._replicas]

    @property
    def _capacity(self) -> float:
        """Requests that run at once: whichever ends first, batch places or KV cache."""
        fit_the_cache = self._model.kv_cache_tokens / self._tokens_per_request
        return min(float(self._model.requests_running_max), fit_the_cache)

    @property
    def _tokens_per_request(self) -> float:
        """Tokens a running request holds on average: it is half done."""
        return self._model.prompt_tokens + self._model.output_tokens / 2

    def _step_seconds(self, running: float) -> float:
        return self._model.step_seconds + self._model.step_seconds_per_request * running

    def _service_seconds(self, running: float) -> float:
        prefill = self._model.prompt_tokens / self._model.prefill_tokens_per_second
        return prefill + self._model.output_tokens * self._step_seconds(running)

    def _requests_per_second(self, seconds: float) -> float:
        if self._fixed_load is not None:
            return self._fixed_load
        swing = (1 - math.cos(2 * math.pi * seconds / _RAMP_SECONDS)) / 2
        level = _RAMP_LOWEST + (_RAMP_HIGHEST - _RAMP_LOWEST) * swing
        return level * self._pattern_requests_per_second

    def _advance(self) -> int:
        """Bring every replica up to now; of a gap above ten minutes only the last ten."""
        now_ns = max(self._clock(), self._advanced_ns)
        seconds = (now_ns - self._started_ns) / SECOND_NS
        left = min((now_ns - self._advanced_ns) / SECOND_NS, _LONGEST_GAP_SECONDS)
        while left > 0:
            step = min(left, _STEP_SECONDS)
            for replica in self._replicas:
                self._step(replica, seconds - left, step)
            left -= step
        self._advanced_ns = now_ns
        return now_ns

    def _step(self, replica: _Replica, seconds: float, step_seconds: float) -> None:
        wave = 1 + 0.1 * math.sin(2 * math.pi * seconds / 47 + replica.arrival_phase)
        rate = self._requests_per_second(seconds) / len(self._replicas) * wave
        service = self._service_seconds(replica.running)
        completed = min(replica.running, replica.running * step_seconds / service)
        replica.running -= completed
        replica.waiting += rate * step_seconds
        admitted = min(replica.waiting, self._capacity - replica.running)
        replica.waiting -= admitted
        replica.running += admitted
        replica.prompt_tokens += admitted * self._model.prompt_tokens
        replica.generation_tokens += completed * self._model.output_tokens

    def _metrics(self, replica: _Replica, now_ns: int, elapsed_seconds: float) -> EngineMetrics:
        model = self._model
        running = round(replica.running)
        tokens = (int(replica.prompt_tokens), int(replica.generation_tokens))
        rates = [
            (total - before) / elapsed_seconds if elapsed_seconds > 0 else None
            for total, before in zip(tokens, replica.reported_tokens, strict=True)
        ]
        replica.reported_tokens = tokens
        prefill_p95 = _PROMPT_P95_FACTOR * model.prompt_tokens / model.prefill_tokens_per_second
        ttft_p95 = replica.waiting / self.requests_per_second_max + prefill_p95
        itl_p95 = _STEP_P95_FACTOR * self._step_seconds(replica.running)
        return EngineMetrics(
            node=self._node,
            engine=replica.engine,
            pool=self.pool,
            model=self._model_name,
            observed_at=instant(now_ns),
            requests_running=running,
            requests_waiting=round(replica.waiting),
            requests_running_max=model.requests_running_max,
            kv_cache_usage_ratio=min(
                1.0, replica.running * self._tokens_per_request / model.kv_cache_tokens
            ),
            prompt_tokens_total=tokens[0],
            generation_tokens_total=tokens[1],
            prompt_tokens_per_second=rates[0],
            generation_tokens_per_second=rates[1],
            ttft_p95_seconds=ttft_p95 if running else None,
            itl_p95_seconds=itl_p95 if running else None,
            simulated=True,
        )
