import msgspec
import pynvml
import pytest

from agent.collectors.gpu import NoGpuError
from agent.collectors.nvml import device
from schemas.gpu import EccMetrics, GpuProcess, NvlinkMetrics, PcieMetrics, XidMetrics
from schemas.metrics import GpuMetrics
from schemas.units import instant
from tests.support.nvml import BUSY_GPU, NOW_NS, NvmlStub, OpenedGpus

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 10, 13, 15


def test_every_reading_arrives_in_base_units(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.reasons", str(0x4 | 0x40))
    stub.set("process.17", "")
    gpus.sample_until(lambda gpu: gpu.xid is not None)
    stub.set("0.field.197", "q 2000000")
    stub.set("0.field.139.all", "q 4500")

    (gpu,) = gpus.sample()

    assert gpu == GpuMetrics(
        node="n1",
        gpu="GPU-5f2a1c9e-0000-0000-0000-000000000000",
        uuid="GPU-5f2a1c9e-0000-0000-0000-000000000000",
        index=0,
        name="NVIDIA H100 80GB HBM3",
        driver_version="580.95.05",
        pool="p1",
        is_mig_enabled=False,
        observed_at=instant(NOW_NS),
        interval_seconds=5.0,
        utilization_ratio=0.615,
        utilization_source="gpm_sm_activity",
        kernel_activity_ratio=0.93,
        sm_activity_ratio=0.615,
        sm_occupancy_ratio=0.33,
        tensor_activity_ratio=0.2,
        dram_activity_ratio=0.75,
        memory_activity_ratio=0.41,
        encoder_utilization_ratio=0.07,
        decoder_utilization_ratio=0.12,
        memory_total_bytes=85_520_809_984,
        memory_used_bytes=70_000_000_000,
        memory_free_bytes=14_899_000_000,
        memory_reserved_bytes=621_809_984,
        memory_utilization_ratio=70_000_000_000 / 85_520_809_984,
        temperature_celsius=64.0,
        temperature_memory_celsius=71.0,
        temperature_slowdown_celsius=87.0,
        temperature_shutdown_celsius=92.0,
        power_watts=651.234,
        power_limit_watts=700.0,
        energy_joules_total=123_456.789,
        clock_graphics_hertz=1.98e9,
        clock_sm_hertz=1.965e9,
        clock_memory_hertz=2.619e9,
        throttle_reasons=["sw_power_cap", "hw_thermal_slowdown"],
        performance_state="P0",
        recovery_action="none",
        fan_ratio=0.3,
        pcie=PcieMetrics(
            generation=4,
            generation_max=5,
            lanes=16,
            lanes_max=16,
            sent_bytes_total=2_000_000,
            received_bytes_total=3_000_000,
            sent_bytes_per_second=200_000.0,  # a million in 5 s
            received_bytes_per_second=0.0,
            replays_total=3,
        ),
        nvlink=NvlinkMetrics(
            links=2,
            links_active=2,
            sent_bytes_total=2000 * 1024,
            received_bytes_total=4500 * 1024,
            sent_bytes_per_second=0.0,
            received_bytes_per_second=100 * 1024.0,
            crc_errors_total=7,
            replays_total=8,
            recoveries_total=9,
        ),
        ecc=EccMetrics(
            is_enabled=True,
            volatile_corrected_total=5,
            volatile_uncorrected_total=1,
            aggregate_corrected_total=50,
            aggregate_uncorrected_total=10,
            rows_remapped_corrected_total=2,
            rows_remapped_uncorrected_total=1,
            is_remap_pending=True,
            is_remap_failed=False,
        ),
        xid=XidMetrics(events_total=0, critical_10m_count=0, recent=[]),
        processes=[
            GpuProcess(pid=4242, name="/usr/bin/python3", memory_used_bytes=68_000_000_000),
            GpuProcess(pid=17, name="", memory_used_bytes=None),
        ],
    )
    assert msgspec.json.decode(msgspec.json.encode(gpu), type=GpuMetrics) == gpu


def test_values_follow_the_gpu_and_the_interval_is_measured(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    gpus.sample()
    stub.set("0.temperature", "71")

    (gpu,) = gpus.sample()

    assert (gpu.temperature_celsius, gpu.interval_seconds) == (71.0, 5.0)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        pytest.param(
            "utilization", {"kernel_activity_ratio", "memory_activity_ratio"}, id="utilization"
        ),
        pytest.param("encoder", {"encoder_utilization_ratio"}, id="encoder"),
        pytest.param("decoder", {"decoder_utilization_ratio"}, id="decoder"),
        pytest.param(
            "memory",
            {
                "memory_total_bytes", "memory_used_bytes", "memory_free_bytes",
                "memory_reserved_bytes", "memory_utilization_ratio",
            },
            id="memory",
        ),
        pytest.param("temperature", {"temperature_celsius"}, id="temperature"),
        pytest.param("threshold1", {"temperature_slowdown_celsius"}, id="slowdown"),
        pytest.param("threshold0", {"temperature_shutdown_celsius"}, id="shutdown"),
        pytest.param("power", {"power_watts"}, id="power"),
        pytest.param("power_limit", {"power_limit_watts"}, id="power_limit"),
        pytest.param("energy", {"energy_joules_total"}, id="energy"),
        pytest.param("clock0", {"clock_graphics_hertz"}, id="graphics clock"),
        pytest.param("clock1", {"clock_sm_hertz"}, id="sm clock"),
        pytest.param("clock2", {"clock_memory_hertz"}, id="memory clock"),
        pytest.param("reasons", {"throttle_reasons"}, id="throttle reasons"),
        pytest.param("state", {"performance_state"}, id="performance state"),
        pytest.param("fan", {"fan_ratio"}, id="fan"),
        pytest.param("processes", {"processes"}, id="processes"),
        pytest.param("mig_mode", {"is_mig_enabled"}, id="MIG mode"),
        pytest.param("pcie_generation", {"pcie.generation"}, id="PCIe generation"),
        pytest.param("pcie_generation_max", {"pcie.generation_max"}, id="PCIe generation max"),
        pytest.param("pcie_lanes", {"pcie.lanes"}, id="PCIe lanes"),
        pytest.param("pcie_lanes_max", {"pcie.lanes_max"}, id="PCIe lanes max"),
        pytest.param("pcie_replays", {"pcie.replays_total"}, id="PCIe replays"),
        pytest.param("ecc_mode", {"ecc.is_enabled"}, id="ECC mode"),
        pytest.param(
            "ecc_volatile_corrected", {"ecc.volatile_corrected_total"}, id="ECC volatile corrected"
        ),
        pytest.param(
            "ecc_volatile_uncorrected",
            {"ecc.volatile_uncorrected_total"},
            id="ECC volatile uncorrected",
        ),
        pytest.param(
            "ecc_aggregate_corrected",
            {"ecc.aggregate_corrected_total"},
            id="ECC aggregate corrected",
        ),
        pytest.param(
            "ecc_aggregate_uncorrected",
            {"ecc.aggregate_uncorrected_total"},
            id="ECC aggregate uncorrected",
        ),
        pytest.param(
            "rows",
            {
                "ecc.rows_remapped_corrected_total", "ecc.rows_remapped_uncorrected_total",
                "ecc.is_remap_pending", "ecc.is_remap_failed",
            },
            id="remapped rows",
        ),
        pytest.param("field.82", {"temperature_memory_celsius"}, id="memory temperature"),
        pytest.param("field.230", {"recovery_action"}, id="recovery action"),
        pytest.param("field.197", {"pcie.sent_bytes_total"}, id="PCIe bytes sent"),
        pytest.param("field.198", {"pcie.received_bytes_total"}, id="PCIe bytes received"),
        pytest.param(
            "field.138.all", {"nvlink.sent_bytes_total"}, id="NVLink bytes sent"
        ),
        pytest.param(
            "field.139.all", {"nvlink.received_bytes_total"}, id="NVLink bytes received"
        ),
        pytest.param("field.38", {"nvlink.crc_errors_total"}, id="NVLink CRC errors"),
        pytest.param("field.52", {"nvlink.replays_total"}, id="NVLink replays"),
        pytest.param("field.59", {"nvlink.recoveries_total"}, id="NVLink recoveries"),
        pytest.param("nvlink1", {"nvlink.links_active"}, id="NVLink links active"),
        pytest.param("gpm.3", {"sm_occupancy_ratio"}, id="SM occupancy"),
        pytest.param("gpm.5", {"tensor_activity_ratio"}, id="tensor activity"),
        pytest.param("gpm.10", {"dram_activity_ratio"}, id="memory bandwidth"),
    ],
)  # fmt: skip
def test_a_failing_reading_costs_its_own_fields_and_is_tried_again(
    stub: NvmlStub, gpus: OpenedGpus, key: str, fields: set[str]
) -> None:
    value = BUSY_GPU[key]
    stub.fail(f"0.{key}", TIMEOUT)

    gpus.sample()  # rates and activity need two
    (failed,) = gpus.sample()
    stub.set(f"0.{key}", value)
    gpus.sample()
    (recovered,) = gpus.sample()

    assert missing(failed) == fields
    assert failed.errors == dict.fromkeys(fields, "Timeout")
    assert recovered.errors == {}
    assert missing(recovered) == set()


def missing(gpu: GpuMetrics) -> set[str]:
    """Which readings are null, by path; not rates, nor XID, which are heard of in their time."""
    found = set()
    for field, value in msgspec.structs.asdict(gpu).items():
        parts = msgspec.structs.asdict(value) if field in ("pcie", "nvlink", "ecc") else None
        if parts is not None:
            found |= {f"{field}.{name}" for name, part in parts.items() if part is None}
        elif value is None:
            found.add(field)
    return {path for path in found - {"parent", "mig", "xid"} if not path.endswith("_per_second")}


def test_without_utilization_there_is_no_source_of_it(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.fail("0.utilization", NOT_SUPPORTED)

    (gpu,) = gpus.sample()

    assert (gpu.utilization_ratio, gpu.utilization_source) == (None, None)


def test_what_a_gpu_does_not_offer_is_null_without_error_and_never_asked_again(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.fan", NOT_SUPPORTED)

    first, second = gpus.sample()[0], gpus.sample()[0]

    assert (first.fan_ratio, first.errors, second.errors) == (None, {}, {})
    assert stub.calls("0.fan") == 1
    assert stub.calls("0.power") == 2


def test_what_is_forbidden_stays_an_error_and_is_not_asked_again_at_once(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.processes", NO_PERMISSION)

    first, second = gpus.sample()[0], gpus.sample()[0]

    assert first.errors == second.errors == {"processes": "Insufficient Permissions"}
    assert stub.calls("0.processes") == 1


def test_what_was_forbidden_is_asked_again_once_in_a_while(
    stub: NvmlStub, gpus: OpenedGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ASK_AGAIN_SECONDS", 10.0)  # two samples
    stub.fail("0.processes", NO_PERMISSION)
    denied = [gpus.sample()[0].errors for _ in range(4)]
    calls = stub.calls("0.processes")
    stub.set("0.processes", "")

    allowed = gpus.sample()[0].errors

    assert [list(errors) for errors in denied] == [["processes"]] * 4
    assert calls == 2
    assert allowed == {}


@pytest.mark.parametrize(
    ("newer", "older", "value", "field", "expected"),
    [
        pytest.param(
            "temperature", "temperature_old", "63", "temperature_celsius", 63.0, id="temperature"
        ),
        pytest.param(
            "memory", "memory_v1", "80 60 20", "memory_utilization_ratio", 0.75, id="memory"
        ),
        pytest.param(
            "reasons", "reasons_old", "512", "throttle_reasons", ["board_limit"], id="reasons"
        ),
        pytest.param(
            "power_limit", "power_limit_old", "350000", "power_limit_watts", 350.0, id="limit"
        ),
        pytest.param(
            "processes",
            "processes_old",
            "9 100",
            "processes",
            [GpuProcess(pid=9, memory_used_bytes=100)],
            id="processes",
        ),
    ],
)
def test_an_older_driver_is_asked_in_its_own_words(
    stub: NvmlStub,
    newer: str,
    older: str,
    value: str,
    field: str,
    expected: object,
    gpus: OpenedGpus,
) -> None:
    stub.fail(f"0.{newer}", FUNCTION_NOT_FOUND)
    stub.set(f"0.{older}", value)

    first, second = gpus.sample()[0], gpus.sample()[0]

    assert getattr(first, field) == getattr(second, field) == expected
    assert first.errors == {}
    assert stub.calls(f"0.{newer}") == 1


def test_the_older_memory_call_leaves_the_reserved_share_null(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.memory", FUNCTION_NOT_FOUND)

    (gpu,) = gpus.sample()

    assert (gpu.memory_used_bytes, gpu.memory_reserved_bytes) == (70_621_809_984, None)


def test_what_never_changes_is_asked_for_once(stub: NvmlStub, gpus: OpenedGpus) -> None:

    gpus.sample()
    (gpu,) = gpus.sample()

    assert (gpu.name, gpu.temperature_slowdown_celsius) == ("NVIDIA H100 80GB HBM3", 87.0)
    assert [stub.calls(f"0.{key}") for key in ("handle", "name", "threshold1")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        pytest.param(0x0, [], id="none"),
        pytest.param(0x1, ["gpu_idle"], id="0x1"),
        pytest.param(0x2, ["applications_clocks_setting"], id="0x2"),
        pytest.param(0x4, ["sw_power_cap"], id="0x4"),
        pytest.param(0x8, ["hw_slowdown"], id="0x8"),
        pytest.param(0x10, ["sync_boost"], id="0x10"),
        pytest.param(0x20, ["sw_thermal_slowdown"], id="0x20"),
        pytest.param(0x40, ["hw_thermal_slowdown"], id="0x40"),
        pytest.param(0x80, ["hw_power_brake_slowdown"], id="0x80"),
        pytest.param(0x100, ["display_clock_setting"], id="0x100"),
        pytest.param(0x400, ["reliability"], id="0x400"),
        pytest.param(0x48, ["hw_slowdown", "hw_thermal_slowdown"], id="two"),
    ],
)
def test_throttle_reasons_have_names(
    stub: NvmlStub, mask: int, names: list[str], gpus: OpenedGpus
) -> None:
    stub.set("0.reasons", str(mask))

    (gpu,) = gpus.sample()

    assert gpu.throttle_reasons == names


def test_power_above_the_limit_is_kept(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.power", "405000")
    stub.set("0.power_limit", "400000")

    (gpu,) = gpus.sample()

    assert (gpu.power_watts, gpu.power_limit_watts, gpu.errors) == (405.0, 400.0, {})


@pytest.mark.parametrize(
    ("key", "field"),
    [
        pytest.param("utilization", "utilization_ratio", id="utilization"),
        pytest.param("fan", "fan_ratio", id="fan"),
    ],
)
def test_a_share_above_the_whole_is_the_whole(
    stub: NvmlStub, key: str, field: str, gpus: OpenedGpus
) -> None:
    stub.set(f"0.{key}", "103 0")

    (gpu,) = gpus.sample()

    assert getattr(gpu, field) == 1.0


@pytest.mark.parametrize("key", ["utilization", "encoder", "decoder"])
def test_a_share_that_is_none_is_an_error_of_its_field(
    stub: NvmlStub, key: str, gpus: OpenedGpus
) -> None:
    stub.set(f"0.{key}", f"{2**32 - 1} 0")

    (gpu,) = gpus.sample()

    assert set(gpu.errors.values()) == {"unexpected answer: ValueError('4294967295 of 100')"}
    assert (gpu.is_reachable, gpu.power_watts) == (True, 651.234)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        pytest.param("power", "power_watts", id="power"),
        pytest.param("clock1", "clock_sm_hertz", id="clock"),
        pytest.param("fan", "fan_ratio", id="fan"),
    ],
)
def test_what_the_driver_does_not_know_is_null_and_an_error(
    stub: NvmlStub, key: str, field: str, gpus: OpenedGpus
) -> None:
    stub.set(f"0.{key}", str(2**32 - 1))

    (gpu,) = gpus.sample()

    assert getattr(gpu, field) is None
    assert gpu.errors == {field: "the driver does not know"}


def test_an_unknown_performance_state_is_null(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.state", "32")

    (gpu,) = gpus.sample()

    assert (gpu.performance_state, gpu.errors) == (None, {})


def test_a_gpu_without_processes_has_an_empty_list(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.processes", "")

    (gpu,) = gpus.sample()

    assert gpu.processes == []


def test_gpus_are_told_apart_by_uuid(two_gpus: NvmlStub, gpus: OpenedGpus) -> None:
    two_gpus.set("1.power", "120000")

    first, second = gpus.sample()

    assert (first.index, second.index) == (0, 1)
    assert first.gpu != second.gpu
    assert (first.power_watts, second.power_watts) == (651.234, 120.0)


def test_a_lost_gpu_keeps_its_identity_while_the_others_go_on(
    two_gpus: NvmlStub, gpus: OpenedGpus
) -> None:
    gpus.sample()
    two_gpus.fail("0.utilization", GPU_IS_LOST)

    lost, other = gpus.sample()
    calls = two_gpus.calls("0.power")

    assert (lost.uuid, lost.name) == (
        "GPU-5f2a1c9e-0000-0000-0000-000000000000",
        "NVIDIA H100 80GB HBM3",
    )
    assert lost.errors == {"gpu": "GPU is lost"}
    assert (lost.is_reachable, other.is_reachable) == (False, True)
    assert (lost.power_watts, lost.utilization_source) == (None, None)
    assert other.power_watts == 651.234
    assert calls == 1, "a lost GPU is asked only once per sample"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        pytest.param(GPU_IS_LOST, "GPU is lost", id="lost"),
        pytest.param(16, "GPU requires restart", id="needs a reset"),
        pytest.param(28, "an error of the stub", id="not found"),
        pytest.param(1, "Uninitialized", id="driver forgot us"),
        pytest.param(9, "Driver Not Loaded", id="driver unloaded"),
        pytest.param(18, "RM has detected an NVML/RM version mismatch.", id="driver replaced"),
    ],
)
def test_a_gpu_lost_in_the_middle_of_a_sample_reports_nothing_of_it(
    stub: NvmlStub, gpus: OpenedGpus, code: int, why: str
) -> None:
    stub.fail("0.power", code)

    (gpu,) = gpus.sample()

    assert (gpu.is_reachable, gpu.utilization_ratio, gpu.errors) == (False, None, {"gpu": why})


def test_a_lost_gpu_that_comes_back_is_measured_again(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.fail("0.utilization", GPU_IS_LOST)
    gpus.sample()
    stub.set("0.utilization", "50 10")

    (gpu,) = gpus.sample()

    assert (gpu.kernel_activity_ratio, gpu.is_reachable, gpu.errors) == (0.5, True, {})


def test_a_gpu_in_the_place_of_a_lost_one_is_another(stub: NvmlStub, gpus: OpenedGpus) -> None:
    gpus.sample()
    stub.fail("0.utilization", GPU_IS_LOST)
    gpus.sample()
    stub.set("0.uuid", "GPU-of-another")
    stub.set("0.utilization", "50 10")

    (gpu,) = gpus.sample()

    assert (gpu.gpu, gpu.is_reachable) == ("GPU-of-another", True)


def test_a_gpu_lost_before_the_start_has_its_place_until_it_answers(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.handle", GPU_IS_LOST)

    (lost,) = gpus.sample()
    stub.set("0.handle", "1")
    (back,) = gpus.sample()

    assert (lost.gpu, lost.uuid, lost.errors) == ("index-0", "", {"gpu": "GPU is lost"})
    assert (back.gpu, back.errors) == ("GPU-5f2a1c9e-0000-0000-0000-000000000000", {})


def test_a_node_without_the_driver_library_has_no_nvidia_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: OpenedGpus
) -> None:
    monkeypatch.setattr(pynvml, "CDLL", _library_is_not_there)

    with pytest.raises(NoGpuError, match="no NVIDIA GPU") as caught:
        gpus.sample()

    assert caught.value.degraded is False


def _library_is_not_there(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("key", "code", "text"),
    [
        pytest.param("init", 9, "not loaded", id="driver not loaded"),
        pytest.param("init", 18, "differ in version", id="version mismatch"),
        pytest.param("init", 4, "no permission", id="no permission"),
        pytest.param("init", 999, "NVML does not start: Unknown Error", id="unknown"),
        pytest.param("count", 10, "NVML does not count GPUs: Timeout", id="no count"),
    ],
)
def test_a_driver_that_does_not_work_is_degraded_and_says_why(
    stub: NvmlStub, gpus: OpenedGpus, key: str, code: int, text: str
) -> None:
    stub.fail(key, code)

    with pytest.raises(NoGpuError, match=text) as caught:
        gpus.sample()

    assert caught.value.degraded is True


def test_a_driver_that_sees_no_gpu_is_as_good_as_none(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("count", "0")

    with pytest.raises(NoGpuError, match="no NVIDIA GPU") as caught:
        gpus.sample()

    assert caught.value.degraded is False
    assert stub.calls("shutdown") == 1


def test_closing_shuts_nvml_down_once_even_when_that_fails(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("shutdown", 999)
    gpus.sample()

    gpus.close()
    gpus.close()

    assert stub.calls("shutdown") == 1
