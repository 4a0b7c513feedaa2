"""`up` on a machine with an NVIDIA driver: the binding itself loads the stub as its library."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.bus import Bus, connect
from agent.demo.parts import expecting
from schemas.metrics import GpuMetrics
from tests.support.nvml import NvmlStub
from tests.support.program import in_thread, running_up

QUICK = {"agent__interval_seconds": 0.2, "agent__gpu_timeout_seconds": 1}
HUNG = {"gpu": "no answer in 1 s: the driver hangs"}


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlStub:
    """Two GPUs in the programs that the test starts."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent))
    monkeypatch.setenv("NVML_STUB_FILE", str(tmp_path / "values"))
    return NvmlStub(tmp_path / "values", gpus=2)


async def next_gpu(bus: Bus, fits: Callable[[GpuMetrics], bool]) -> GpuMetrics:
    async with expecting(bus, GpuMetrics, fits) as heard, asyncio.timeout(30):
        return (await heard).message


async def test_gpus_are_published_and_one_that_hangs_holds_up_neither_the_other_nor_the_end(
    driver: NvmlStub, tmp_path: Path
) -> None:
    with running_up(tmp_path / "up", **QUICK) as up:
        async with await connect(up.url, name="test") as bus:
            healthy = await next_gpu(bus, lambda gpu: gpu.sm_activity_ratio is not None)
            driver.hang("0.temperature")
            hung = await next_gpu(bus, lambda gpu: not gpu.is_reachable)
            other = await next_gpu(bus, lambda gpu: gpu.index == 1 and gpu.is_reachable)
        code = await in_thread(up.stop)  # while it hangs

    assert (healthy.simulated, healthy.power_watts) == (False, 651.234)
    assert (hung.index, hung.errors) == (0, HUNG)
    assert other.power_watts == 651.234
    assert code == 0
    assert "Traceback" not in up.stderr


async def test_a_driver_that_hangs_from_the_start_does_not_hold_up_the_program(
    driver: NvmlStub, tmp_path: Path
) -> None:
    driver.hang("init")

    with running_up(tmp_path / "up", **QUICK) as up:
        async with await connect(up.url, name="test") as bus:
            driver.set("init", "0")
            gpu = await next_gpu(bus, lambda gpu: gpu.is_reachable)
        code = await in_thread(up.stop)

    assert (gpu.power_watts, code) == (651.234, 0)
    assert "no answer in 1 s while it starts" in up.stderr
