"""GPUs in threads of their own: hung, lost, removed, late ones, with NVML answered by the stub."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.collectors.gpu import GpuBackend, NoGpuError
from agent.collectors.nvml.backend import NvmlBackend
from agent.collectors.simulated_gpus import SimulatedGpus
from agent.gpus import GpuSampler
from schemas.metrics import GpuMetrics
from tests.support.nvml import NvmlStub
from tests.support.samples import gpu
from tests.support.waiting import until, until_async

GPU_IS_LOST, DRIVER_NOT_LOADED = 15, 9
FIRST = "GPU-5f2a1c9e-0000-0000-0000-000000000000"
SECOND = "GPU-5f2a1c9e-0000-0000-0000-000000000001"
PATIENT = 30.0
SHORT = 1.0  # yet long enough for a GPU that answers, on a busy machine
# So many samples, each waiting for a GPU that hangs, would not be done by the deadline.
MANY, DEADLINE_SECONDS = 40, 30.0


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """What the kernel driver lists."""
    folder = tmp_path / "driver"
    folder.mkdir()
    return folder


@asynccontextmanager
async def sampling(
    folder: Path,
    *more: GpuBackend,
    timeout_seconds: float = PATIENT,
    rescan_seconds: float = 3600.0,
) -> AsyncIterator[GpuSampler]:
    nvml = NvmlBackend(node="n1", pool=None, driver_folder=folder)
    sampler = GpuSampler(
        [nvml, *more], timeout_seconds=timeout_seconds, rescan_seconds=rescan_seconds
    )
    try:
        yield sampler
    finally:
        sampler.close()
        await until(lambda: all(t.name != "nvml-driver" for t in threading.enumerate()))


def reachable(gpus: list[GpuMetrics]) -> dict[str, bool]:
    return {gpu.gpu: gpu.is_reachable for gpu in gpus}


async def until_sample(
    sampler: GpuSampler, condition: Callable[[list[GpuMetrics]], bool]
) -> list[GpuMetrics]:
    found: list[GpuMetrics] = []

    async def is_met() -> bool:
        found[:] = await sampler.sample()
        return condition(found)

    await until_async(is_met)
    return found


async def test_all_gpus_are_sampled_together(two_gpus: NvmlStub, driver: Path) -> None:
    async with sampling(driver) as sampler:
        gpus = await sampler.sample()
        state = sampler.state()

    assert reachable(gpus) == {FIRST: True, SECOND: True}
    assert state == ("ok", "2 by nvml")


async def test_a_gpu_that_hangs_is_told_and_the_others_go_on_without_waiting_for_it(
    two_gpus: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, timeout_seconds=SHORT) as sampler:
        await sampler.sample()
        two_gpus.hang("0.power")
        hung, other = await sampler.sample()
        state = sampler.state()
        two_gpus.set("1.power", "120000")
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(MANY):
                _, later = await sampler.sample()
        two_gpus.set("0.power", "300000")
        back = await until_sample(sampler, lambda gpus: all(reachable(gpus).values()))
        healed = sampler.state()

    assert (hung.gpu, hung.name) == (FIRST, "NVIDIA H100 80GB HBM3")
    assert (hung.is_reachable, hung.power_watts) == (False, None)
    assert hung.errors == {"gpu": "no answer in 1 s: the driver hangs"}
    assert state == ("degraded", f"{FIRST}: no answer in 1 s: the driver hangs")
    assert (other.power_watts, later.power_watts) == (651.234, 120.0)
    assert back[0].power_watts == 300.0
    assert sampler.counters["gpu_timeouts_total"] > MANY
    assert healed == ("ok", "2 by nvml")


async def test_instances_hang_with_their_gpu_and_go_when_it_has_them_no_more(
    two_gpus: NvmlStub, driver: Path
) -> None:
    two_gpus.add_mig(0, 0, gpu_instance=3)

    async with sampling(driver, timeout_seconds=SHORT) as sampler:
        _, instance, _ = await sampler.sample()
        two_gpus.hang("0.power")
        hung, with_it, other = await sampler.sample()
        two_gpus.set("0.mig_mode", "0 0")
        two_gpus.set("0.power", "300000")
        await until_sample(sampler, lambda gpus: reachable(gpus) == {FIRST: True, SECOND: True})

    assert (with_it.gpu, with_it.parent) == (instance.gpu, hung.gpu)
    assert (with_it.is_reachable, with_it.errors) == (False, hung.errors)
    assert hung.interval_seconds > 0
    assert other.is_reachable


async def test_instances_of_a_gpu_that_stays_lost_are_told_by_a_driver_that_is_opened_anew(
    stub: NvmlStub, driver: Path
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)

    async with sampling(driver, rescan_seconds=0.0) as sampler:
        _, instance = await sampler.sample()
        stub.fail("0.mig_mode", GPU_IS_LOST)
        await sampler.sample()
        lost = await sampler.sample()

    assert stub.calls("init") == 2
    assert reachable(lost) == {FIRST: False, instance.gpu: False}


async def test_a_gpu_that_hangs_before_it_said_who_it_is_has_its_place(
    two_gpus: NvmlStub, driver: Path
) -> None:
    two_gpus.hang("0.handle")

    async with sampling(driver, timeout_seconds=SHORT) as sampler:
        hung, other = await sampler.sample()
        two_gpus.set("0.handle", "1")
        back = await until_sample(sampler, lambda gpus: all(reachable(gpus).values()))

    assert (hung.gpu, hung.is_reachable, other.is_reachable) == ("index-0", False, True)
    assert reachable(back) == {FIRST: True, SECOND: True}


async def test_with_all_gpus_out_of_reach_the_part_has_failed(
    two_gpus: NvmlStub, driver: Path
) -> None:
    two_gpus.fail("0.power", GPU_IS_LOST)
    two_gpus.fail("1.power", GPU_IS_LOST)

    async with sampling(driver) as sampler:
        await sampler.sample()

    assert sampler.state() == ("failed", f"{FIRST}: GPU is lost, and 1 more")


async def test_a_driver_that_hangs_at_its_start_is_told_and_its_gpus_come_when_it_is_done(
    stub: NvmlStub, driver: Path
) -> None:
    stub.hang("init")

    async with sampling(driver, timeout_seconds=SHORT) as sampler:
        first = await sampler.sample()
        state = sampler.state()
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(MANY):
                await sampler.sample()
        stub.set("init", "0")
        gpus = await until_sample(sampler, bool)
        healed = sampler.state()

    assert first == []
    assert state == ("degraded", "nvml: no answer in 1 s while it starts")
    assert reachable(gpus) == {FIRST: True}
    assert healed == ("ok", "1 by nvml")


async def test_a_driver_that_appears_later_is_found(stub: NvmlStub, driver: Path) -> None:
    stub.fail("init", DRIVER_NOT_LOADED)

    async with sampling(driver, rescan_seconds=0.0) as sampler:
        none = await sampler.sample()
        state = sampler.state()
        stub.set("init", "0")
        gpus = await sampler.sample()

    assert (none, state[0]) == ([], "degraded")
    assert "not loaded" in state[1]
    assert reachable(gpus) == {FIRST: True}


async def test_a_driver_is_looked_for_only_so_often(stub: NvmlStub, driver: Path) -> None:
    stub.fail("init", DRIVER_NOT_LOADED)

    async with sampling(driver, rescan_seconds=3600.0) as sampler:
        for _ in range(3):
            await sampler.sample()

    assert stub.calls("init") == 1


async def test_a_gpu_that_appears_later_is_found(two_gpus: NvmlStub, driver: Path) -> None:
    two_gpus.set("count", "1")

    async with sampling(driver, rescan_seconds=0.0) as sampler:
        before = await sampler.sample()
        two_gpus.set("count", "2")
        (driver / "0000:41:00.0").mkdir()
        after = await sampler.sample()

    assert reachable(before) == {FIRST: True}
    assert reachable(after) == {FIRST: True, SECOND: True}


async def test_a_gpu_that_was_removed_is_told_until_it_is_back(
    two_gpus: NvmlStub, driver: Path
) -> None:
    (driver / "0000:41:00.0").mkdir()

    async with sampling(driver, rescan_seconds=0.0) as sampler:
        await sampler.sample()
        two_gpus.set("count", "1")
        (driver / "0000:41:00.0").rmdir()
        kept, removed = await sampler.sample()
        state = sampler.state()
        two_gpus.set("count", "2")
        (driver / "0000:41:00.0").mkdir()
        back = await sampler.sample()

    assert (kept.gpu, kept.is_reachable) == (FIRST, True)
    assert (removed.gpu, removed.is_reachable) == (SECOND, False)
    assert removed.errors == {"gpu": "the driver does not list it any more"}
    assert removed.observed_at >= kept.observed_at
    assert state[0] == "degraded"
    assert reachable(back) == {FIRST: True, SECOND: True}


async def test_a_driver_whose_gpus_stay_is_never_opened_again(stub: NvmlStub, driver: Path) -> None:
    async with sampling(driver, rescan_seconds=0.0) as sampler:
        for _ in range(3):
            await sampler.sample()
        calls = stub.calls("init"), stub.calls("shutdown")

    assert calls == (1, 0)


async def test_under_a_call_that_hangs_the_driver_is_not_opened_again(
    two_gpus: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, timeout_seconds=SHORT, rescan_seconds=0.0) as sampler:
        await sampler.sample()
        two_gpus.hang("0.power")
        await sampler.sample()
        (driver / "0000:41:00.0").mkdir()
        gpus = await sampler.sample()

    assert reachable(gpus) == {FIRST: False, SECOND: True}
    assert two_gpus.calls("shutdown") == 0


async def test_a_driver_that_has_lost_all_its_gpus_is_opened_again(
    stub: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, rescan_seconds=0.0) as sampler:
        await sampler.sample()
        stub.fail("0.power", GPU_IS_LOST)
        await sampler.sample()
        stub.set("0.power", "100000")
        (gpu,) = await sampler.sample()

    assert (gpu.is_reachable, gpu.power_watts) == (True, 100.0)
    assert stub.calls("init") == 2


async def test_gpus_of_a_driver_that_goes_away_are_told_with_its_reason(
    stub: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, rescan_seconds=0.0) as sampler:
        await sampler.sample()
        stub.fail("init", DRIVER_NOT_LOADED)
        (driver / "changed").mkdir()
        (gpu,) = await sampler.sample()

    assert (gpu.gpu, gpu.is_reachable) == (FIRST, False)
    assert "not loaded" in gpu.errors["gpu"]
    assert sampler.state()[0] == "failed"


async def test_who_asks_meanwhile_gets_the_same_sample(stub: NvmlStub, driver: Path) -> None:
    async with sampling(driver) as sampler:
        first, second = await asyncio.gather(sampler.sample(), sampler.sample())

    assert first is second
    assert stub.calls("0.power") == 1


async def test_several_vendors_are_sampled_together(stub: NvmlStub, driver: Path) -> None:
    async with sampling(driver, SimulatedGpus(2, node="n1")) as sampler:
        gpus = await sampler.sample()
        state = sampler.state()

    assert [gpu.simulated for gpu in gpus] == [False, True, True]
    assert state == ("ok", "3 by nvml, simulated")


class Absent:
    """A backend without GPUs, or one whose driver is broken."""

    name = "absent"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def open(self) -> list[SimulatedGpus]:
        raise self._error

    def has_changed(self) -> bool:
        return False

    def close(self) -> None:
        return


async def test_a_node_without_gpus_says_so_for_each_vendor(stub: NvmlStub, driver: Path) -> None:
    stub.set("count", "0")

    async with sampling(driver, Absent(NoGpuError("no AMD GPU", degraded=False))) as sampler:
        gpus = await sampler.sample()

    assert gpus == []
    assert sampler.state() == ("off", "no NVIDIA GPU: the driver sees none; no AMD GPU")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(NoGpuError("it is broken", degraded=True), "it is broken", id="said"),
        pytest.param(
            ZeroDivisionError("what"),
            "absent does not start: ZeroDivisionError('what')",
            id="unforeseen",
        ),
    ],
)
async def test_a_broken_driver_degrades_a_node_whose_other_gpus_are_fine(
    stub: NvmlStub, driver: Path, error: Exception, text: str
) -> None:
    async with sampling(driver, Absent(error)) as sampler:
        gpus = await sampler.sample()

    assert reachable(gpus) == {FIRST: True}
    assert sampler.state() == ("degraded", text)


class Broken(SimulatedGpus):
    """GPUs whose samples fail in a way that nobody foresaw."""

    def sample(self) -> list[GpuMetrics]:
        raise ZeroDivisionError("what")

    def identities(self) -> list[GpuMetrics]:
        return [gpu("g9", node="n1")]


async def test_a_sample_that_fails_unforeseen_costs_its_gpu_and_no_other(
    stub: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, Broken(1, node="n1")) as sampler:
        other, broken = await sampler.sample()

    assert (broken.gpu, broken.is_reachable) == ("g9", False)
    assert broken.errors == {"gpu": "ZeroDivisionError('what')"}
    assert other.is_reachable
    assert sampler.counters["gpu_failures_total"] == 1


async def test_closing_shuts_the_driver(stub: NvmlStub, driver: Path) -> None:
    async with sampling(driver) as sampler:
        await sampler.sample()

    assert stub.calls("shutdown") == 1


async def test_closing_does_not_shut_the_driver_under_a_call_that_hangs(
    stub: NvmlStub, driver: Path
) -> None:
    async with sampling(driver, timeout_seconds=SHORT) as sampler:
        stub.hang("0.power")
        await sampler.sample()

    assert stub.calls("shutdown") == 0
