"""Simulated GPUs, for a machine that has none."""

import math
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.collectors.simulated_engines import SimulatedEngines
from schemas.gpu import EccMetrics, PcieMetrics, XidMetrics
from schemas.labels import NO_LABELS
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS, instant, token

_MEBIBYTE = 1 << 20


class GpuModel(NamedTuple):
    """What a data sheet says, and what such a GPU shows when idle.

    Power limit, clocks and PCIe: NVIDIA's data sheets. Memory: the total that `nvidia-smi` shows.
    Temperatures: the slowdown and shutdown points NVML reports.
    """

    name: str
    memory_mebibytes: int
    power_limit_watts: float
    power_idle_watts: float
    slowdown_celsius: float
    shutdown_celsius: float
    graphics_megahertz: float
    memory_megahertz: float
    pcie_generation: int


GPU_MODELS = {
    "A100": GpuModel("NVIDIA A100-SXM4-80GB", 81_920, 400, 62, 89, 92, 1410, 1593, 4),
    "B200": GpuModel("NVIDIA B200", 183_359, 1000, 140, 90, 95, 1965, 3996, 5),
    "H100": GpuModel("NVIDIA H100 80GB HBM3", 81_559, 700, 72, 87, 92, 1980, 2619, 5),
    "H200": GpuModel("NVIDIA H200", 143_771, 700, 76, 87, 92, 1980, 3201, 5),
    "L40S": GpuModel("NVIDIA L40S", 46_068, 350, 36, 93, 96, 2520, 9001, 4),
}
_GRAPHICS_IDLE_MEGAHERTZ = 345.0
_AMBIENT_CELSIUS = 32.0
_FULL_LOAD_CELSIUS = 74.0
_RESERVED_RATIO = 0.007  # the driver's own share of the memory
_ENGINE_MEMORY_RATIO = 0.9  # vLLM's default `gpu_memory_utilization`: taken at start, kept
_PCIE_LANES = 16
_PATTERN_SECONDS = (600.0, 97.0)


def parse_gpus(text: str) -> tuple[int, str]:
    """`8xH100` → (8, "H100"); the model's case does not matter.

    Raises:
        ValueError: anything else, with an example.
    """
    match = re.fullmatch(r"(\d{1,3})x(\w+)", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in GPU_MODELS or int(match[1]) == 0:
        raise ValueError(
            f"{text!r} does not name simulated GPUs: write for instance 8xH100; "
            f"models: {', '.join(GPU_MODELS)}"
        )
    return int(match[1]), match[2].upper()


class SimulatedGpus:
    """GPUs of one model with plausible readings; always `simulated`.

    The load is the batch fill of the engine that lives on the GPU, as of that engine's last sample
    (the node's GPUs are shared out evenly, in order), or without engines a smooth seeded wave per
    GPU between 5 % and 95 %. From the load: utilisation is its square root (a small batch keeps the
    GPU busy without filling it), power rises from idle to 95 % of the limit, temperature with
    power, and energy is power over time; SMs, tensor cores and memory bandwidth are busy for 0.9 of
    the utilisation, and 0.4 and 0.8 of the load. Nothing ever fails: no ECC error, no XID.
    Fan, encoder, decoder and traffic are null: such GPUs have none, use none, or it is not
    simulated.
    """

    name = "simulated"

    def __init__(
        self,
        count: int,
        model: str = "H100",
        *,
        node: str,
        pool: str | None = None,
        labels: Mapping[str, str] = NO_LABELS,
        seed: int = 0,
        clock: Callable[[], int] = time.time_ns,
        engines: SimulatedEngines | None = None,
    ) -> None:
        self._model = GPU_MODELS[model]
        self._node = node
        # They carry these engines, so they are of their pool: by it a replica has GPUs and a price.
        self._pool = engines.pool if pool is None and engines is not None else pool
        self._labels = dict(labels)
        self._clock = clock
        self._engines = engines
        self._started_ns = clock()
        self._sampled_ns: int | None = None
        chance = random.Random(f"{node}-{seed}")  # noqa: S311 - a simulation
        self._uuids = [f"GPU-sim-{chance.getrandbits(64):016x}" for _ in range(count)]
        self._phases = [
            tuple(chance.uniform(0.0, 2 * math.pi) for _ in _PATTERN_SECONDS) for _ in range(count)
        ]
        self._energy_joules = [0.0] * count

    def sample(self) -> list[GpuMetrics]:
        """Every GPU now."""
        now_ns = max(self._clock(), self._sampled_ns or 0)
        interval = 0.0 if self._sampled_ns is None else (now_ns - self._sampled_ns) / SECOND_NS
        self._sampled_ns = now_ns
        return [self._metrics(index, now_ns, interval) for index in range(len(self._uuids))]

    def open(self) -> "list[SimulatedGpus]":
        """All of them are one source: a simulation does not hang."""
        return [self]

    def has_changed(self) -> bool:
        """They stay as they are."""
        return False

    def identities(self) -> list[GpuMetrics]:
        """Nobody: they always answer."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""

    def _load(self, index: int, now_ns: int) -> float:
        if self._engines is not None:
            return self._engines.load_ratio(index / len(self._uuids))
        seconds = (now_ns - self._started_ns) / SECOND_NS
        slow, fast = (
            math.sin(2 * math.pi * seconds / period + phase)
            for period, phase in zip(_PATTERN_SECONDS, self._phases[index], strict=True)
        )
        return 0.5 + 0.37 * slow + 0.08 * fast

    def _metrics(self, index: int, now_ns: int, interval_seconds: float) -> GpuMetrics:
        model = self._model
        load = self._load(index, now_ns)
        is_idle = load < 0.01
        power = model.power_idle_watts + load * (
            0.95 * model.power_limit_watts - model.power_idle_watts
        )
        self._energy_joules[index] += power * interval_seconds
        graphics = 1e6 * (_GRAPHICS_IDLE_MEGAHERTZ if is_idle else model.graphics_megahertz)
        total = model.memory_mebibytes * _MEBIBYTE
        reserved = int(total * _RESERVED_RATIO)
        used = int(total * _ENGINE_MEMORY_RATIO) if self._engines or not is_idle else 0
        heat = power / model.power_limit_watts
        utilization = math.sqrt(load)
        return GpuMetrics(
            node=self._node,
            gpu=token(self._uuids[index]),
            uuid=self._uuids[index],
            index=index,
            name=model.name,
            driver_version="simulated",
            pool=self._pool,
            labels=self._labels,
            observed_at=instant(now_ns),
            interval_seconds=interval_seconds,
            utilization_ratio=utilization,
            utilization_source="simulated",
            kernel_activity_ratio=utilization,
            sm_activity_ratio=0.9 * utilization,
            tensor_activity_ratio=0.4 * load,
            dram_activity_ratio=0.8 * load,
            memory_activity_ratio=0.8 * load,
            memory_total_bytes=total,
            memory_used_bytes=used,
            memory_free_bytes=total - reserved - used,
            memory_reserved_bytes=reserved,
            memory_utilization_ratio=used / total,
            temperature_celsius=_AMBIENT_CELSIUS + (_FULL_LOAD_CELSIUS - _AMBIENT_CELSIUS) * heat,
            temperature_slowdown_celsius=model.slowdown_celsius,
            temperature_shutdown_celsius=model.shutdown_celsius,
            power_watts=power,
            power_limit_watts=model.power_limit_watts,
            energy_joules_total=self._energy_joules[index],
            clock_graphics_hertz=graphics,
            clock_sm_hertz=graphics,
            clock_memory_hertz=1e6 * model.memory_megahertz,
            throttle_reasons=["gpu_idle"] if is_idle else [],
            performance_state="P0",
            pcie=PcieMetrics(
                generation=model.pcie_generation,
                generation_max=model.pcie_generation,
                lanes=_PCIE_LANES,
                lanes_max=_PCIE_LANES,
            ),
            ecc=EccMetrics(
                is_enabled=True,
                volatile_corrected_total=0,
                volatile_uncorrected_total=0,
            ),
            xid=XidMetrics(events_total=0, critical_10m_count=0, recent=[]),
            processes=[],
            simulated=True,
        )
