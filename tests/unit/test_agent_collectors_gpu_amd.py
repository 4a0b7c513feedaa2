import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.collectors.gpu import NoGpuError
from agent.collectors.gpu_amd import AmdBackend
from schemas.gpu import EccMetrics, GpuProcess, PcieMetrics
from schemas.metrics import GpuMetrics
from schemas.units import instant
from tests.support.amdsmi import IO_ERROR, NO_PERMISSION, NOT_SUPPORTED, AmdSmi

NOW_NS = 1_700_000_000_000_000_000
UUID = "e2ff74a1-0000-1000-80f5-1e4c0c1d2a3b"


@pytest.fixture
def amdsmi(monkeypatch: pytest.MonkeyPatch) -> AmdSmi:
    """Installed, with one GPU."""
    module = AmdSmi()
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    return module


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Callable[[], list[GpuMetrics]]]:
    """Opens at the first sample; five seconds pass between two."""
    times = iter(range(10, 1000, 5))
    backend = AmdBackend(
        node="n1",
        pool="p1",
        kernel_module=tmp_path,
        clock=lambda: NOW_NS,
        monotonic=lambda: float(next(times)),
    )
    sources: list[Any] = []

    def take() -> list[GpuMetrics]:
        if not sources:
            sources.extend(backend.open())
        return [gpu for source in sources for gpu in source.sample()]

    yield take
    backend.close()


Sample = Callable[[], list[GpuMetrics]]


def test_every_reading_arrives_in_base_units(amdsmi: AmdSmi, sample: Sample) -> None:
    sample()

    (gpu,) = sample()

    assert gpu == GpuMetrics(
        node="n1",
        gpu=UUID,
        uuid=UUID,
        index=0,
        name="AMD Instinct MI300X",
        driver_version="6.14.14",
        pool="p1",
        observed_at=instant(NOW_NS),
        interval_seconds=5.0,
        utilization_ratio=0.87,
        utilization_source="amdsmi_gfx_activity",
        kernel_activity_ratio=0.87,
        memory_activity_ratio=0.41,
        memory_total_bytes=196_592 * 1024**2,
        memory_used_bytes=150_000 * 1024**2,
        memory_free_bytes=46_592 * 1024**2,
        memory_utilization_ratio=150_000 / 196_592,
        temperature_celsius=71.0,
        temperature_memory_celsius=62.0,
        temperature_slowdown_celsius=100.0,
        temperature_shutdown_celsius=105.0,
        power_watts=640.0,
        power_limit_watts=750.0,
        energy_joules_total=30_500.0,  # 2e9 steps of 15.25 µJ
        clock_graphics_hertz=2.1e9,
        clock_memory_hertz=1.3e9,
        fan_ratio=0.2,
        pcie=PcieMetrics(generation=5, generation_max=5, lanes=16, lanes_max=16, replays_total=4),
        ecc=EccMetrics(volatile_corrected_total=6, volatile_uncorrected_total=1),
        processes=[
            GpuProcess(pid=4242, name="python3", memory_used_bytes=150_000_000_000),
            GpuProcess(pid=17, name=None, memory_used_bytes=0),
        ],
    )
    assert msgspec.json.decode(msgspec.json.encode(gpu), type=GpuMetrics) == gpu


def test_who_a_gpu_is_is_asked_once(amdsmi: AmdSmi, sample: Sample) -> None:
    sample()
    sample()

    assert amdsmi.calls.count("amdsmi_get_gpu_device_uuid") == 1
    assert amdsmi.calls.count("amdsmi_get_power_info") == 2


def test_a_failing_reading_costs_its_own_fields_and_is_tried_again(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    power = amdsmi.answers["amdsmi_get_power_info"]
    amdsmi.fail("amdsmi_get_power_info", IO_ERROR)
    (failed,) = sample()
    amdsmi.answers["amdsmi_get_power_info"] = power

    (recovered,) = sample()

    assert failed.errors == {"power_watts": "AMDSMI_STATUS_12 - an error of the stand-in"}
    assert (failed.power_watts, failed.temperature_celsius) == (None, 71.0)
    assert (recovered.power_watts, recovered.errors) == (640.0, {})


def test_what_is_not_offered_is_null_without_error_and_never_asked_again(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    amdsmi.fail("amdsmi_get_gpu_fan_speed", NOT_SUPPORTED)
    sample()

    (gpu,) = sample()

    assert (gpu.fan_ratio, gpu.errors) == (None, {})
    assert amdsmi.calls.count("amdsmi_get_gpu_fan_speed") == 1


def test_what_is_forbidden_stays_an_error_and_is_not_asked_again_at_once(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    amdsmi.fail("amdsmi_get_gpu_process_list", NO_PERMISSION)
    (first,) = sample()

    (second,) = sample()

    assert first.errors == second.errors
    assert list(second.errors) == ["processes"]
    assert amdsmi.calls.count("amdsmi_get_gpu_process_list") == 1


def test_what_was_forbidden_is_asked_again_after_ten_minutes(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    amdsmi.fail("amdsmi_get_gpu_process_list", NO_PERMISSION)

    for _ in range(121):  # one every 5 s
        (gpu,) = sample()

    assert list(gpu.errors) == ["processes"]
    assert amdsmi.calls.count("amdsmi_get_gpu_process_list") == 2


def test_a_function_that_an_older_release_lacks_leaves_its_fields_null(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    del amdsmi.answers["amdsmi_get_energy_count"]

    (gpu,) = sample()

    assert (gpu.energy_joules_total, gpu.errors) == (None, {})


def test_an_answer_of_another_shape_is_an_error_of_its_reading(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    amdsmi.answers["amdsmi_get_gpu_vram_usage"] = {"vram_total": "N/A", "vram_used": "N/A"}
    amdsmi.answers["amdsmi_get_pcie_info"] = {"pcie_lanes": 16}
    amdsmi.answers["amdsmi_get_gpu_activity"] = {"gfx_activity": 65535, "umc_activity": 3}

    (gpu,) = sample()

    assert gpu.errors["pcie.lanes"] == "unexpected answer: KeyError('pcie_static')"
    assert gpu.errors["memory_used_bytes"].startswith("unexpected answer: ValueError")
    assert gpu.errors["kernel_activity_ratio"].startswith("unexpected answer: ValueError")
    assert (gpu.utilization_ratio, gpu.power_watts) == (None, 640.0)


@pytest.mark.parametrize(
    ("key", "answer", "field"),
    [
        pytest.param(
            "amdsmi_get_gpu_activity",
            {"gfx_activity": "N/A", "umc_activity": "N/A"},
            "utilization_ratio",
            id="activity",
        ),
        pytest.param(
            ("amdsmi_get_clock_info", "MEM"), {"clk": "N/A"}, "clock_memory_hertz", id="clock"
        ),
        pytest.param(
            "amdsmi_get_power_info",
            {"current_socket_power": "N/A", "average_socket_power": "N/A"},
            "power_watts",
            id="power",
        ),
        pytest.param(
            "amdsmi_get_gpu_total_ecc_count",
            {"correctable_count": 2**64 - 1, "uncorrectable_count": 2**64 - 1},
            "ecc",
            id="not said",
        ),
    ],
)
def test_a_value_that_amdsmi_does_not_have_is_null_without_error(
    amdsmi: AmdSmi, sample: Sample, key: Any, answer: object, field: str
) -> None:
    amdsmi.answers[key] = answer

    (gpu,) = sample()

    assert (getattr(gpu, field), gpu.errors) == (None, {})


@pytest.mark.parametrize(
    ("answer", "watts"),
    [
        pytest.param({"current_socket_power": 300}, 300.0, id="release 6, newer GPU"),
        pytest.param(
            {"current_socket_power": "N/A", "average_socket_power": 200},
            200.0,
            id="release 6, older GPU",
        ),
        pytest.param(
            {"socket_power": 2**32 - 1, "current_socket_power": 250},
            250.0,
            id="a value that is not there, not said",
        ),
    ],
)
def test_power_is_found_where_the_release_has_it(
    amdsmi: AmdSmi, sample: Sample, answer: object, watts: float
) -> None:
    amdsmi.answers["amdsmi_get_power_info"] = answer

    (gpu,) = sample()

    assert gpu.power_watts == watts


def test_a_gpu_without_a_hot_spot_tells_its_edge(amdsmi: AmdSmi, sample: Sample) -> None:
    del amdsmi.answers[("amdsmi_get_temp_metric", "HOTSPOT", "CURRENT")]

    (gpu,) = sample()

    assert gpu.temperature_celsius == 55.0


def test_a_gpu_that_answers_nothing_is_told_as_unreachable_with_its_name(
    amdsmi: AmdSmi, sample: Sample
) -> None:
    sample()
    for name in list(amdsmi.answers):
        amdsmi.fail(name, IO_ERROR)

    (gpu,) = sample()

    assert (gpu.gpu, gpu.name, gpu.is_reachable) == (UUID, "AMD Instinct MI300X", False)
    assert gpu.errors == {"gpu": "AMDSMI_STATUS_12 - an error of the stand-in"}
    amdsmi.answers["amdsmi_shut_down"] = None


def test_several_gpus_are_told_in_order(amdsmi: AmdSmi, sample: Sample) -> None:
    amdsmi.gpus = 3

    gpus = sample()

    assert [gpu.index for gpu in gpus] == [0, 1, 2]


def test_without_the_kernel_driver_amdsmi_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # its import would fail

    with pytest.raises(NoGpuError, match="the amdgpu driver is not loaded") as caught:
        AmdBackend(node="n1", pool=None, kernel_module=tmp_path / "absent").open()

    assert caught.value.degraded is False


def test_without_the_package_the_text_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Sample
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)

    with pytest.raises(NoGpuError, match="amdsmi") as caught:
        sample()

    assert caught.value.degraded is False


def test_a_package_that_cannot_be_imported_degrades_and_keeps_off_stdout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sample: Sample,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "amdsmi.py").write_text("print('Unable to find it')\n{}['lib']\n")

    with pytest.raises(NoGpuError, match="cannot be imported") as caught:
        sample()

    assert caught.value.degraded is True
    assert capsys.readouterr().out == ""


def test_a_driver_that_does_not_start_is_degraded(amdsmi: AmdSmi, sample: Sample) -> None:
    amdsmi.fail("amdsmi_init", 34)

    with pytest.raises(NoGpuError, match="amdsmi does not start") as caught:
        sample()

    assert caught.value.degraded is True


def test_a_driver_that_sees_no_gpu_is_as_good_as_none(amdsmi: AmdSmi, sample: Sample) -> None:
    amdsmi.gpus = 0

    with pytest.raises(NoGpuError, match="amdsmi sees none") as caught:
        sample()

    assert caught.value.degraded is False
    assert amdsmi.calls.count("amdsmi_shut_down") == 1
