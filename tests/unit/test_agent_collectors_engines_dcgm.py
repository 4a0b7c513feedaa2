"""dcgm-exporter's pages of several versions as GpuMetrics, in our units."""

import pytest

from agent.collectors.engines.exposition import PageError
from agent.collectors.engines.inference import Place
from agent.collectors.engines.page_reader import PageReader
from schemas.gpu import EccMetrics, MigInstance, NvlinkMetrics, PcieMetrics
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS
from tests.support.metrics_server import capture
from tests.support.samples import START_NS

PLACE = Place(node="gpu-7", name="dcgm", pool="h100")
MIB = 1024**2


def read(*pages: bytes) -> list[GpuMetrics]:
    reader = PageReader(PLACE)
    for index, page in enumerate(pages):
        messages = reader.read(page, START_NS + index * 5 * SECOND_NS)
    return [message for message in messages if isinstance(message, GpuMetrics)]


def one(*lines: str) -> GpuMetrics:
    """The GPU of these lines, each `NAME VALUE`."""
    labelled = [line.replace(" ", '{gpu="0",UUID="GPU-1"} ') for line in lines]
    (gpu,) = read("\n".join(labelled).encode())
    return gpu


def test_an_old_exporter_without_profiling() -> None:
    (gpu,) = read(capture("dcgm-exporter-2.4"))

    assert (gpu.node, gpu.pool) == ("gpu-7", "h100")
    assert gpu.gpu == gpu.uuid == "GPU-1f7c2b50-6c0a-4a51-9d2e-0b6a7d9e4c10"
    assert (gpu.index, gpu.name, gpu.driver_version) == (0, "Tesla T4", "460.106.00")
    assert (gpu.utilization_ratio, gpu.utilization_source) == (0.37, "dcgm_utilization")
    assert gpu.memory_activity_ratio == 0.12
    assert gpu.memory_used_bytes == 3778 * MIB
    assert gpu.memory_free_bytes == 11331 * MIB
    assert gpu.memory_total_bytes is None
    assert gpu.memory_utilization_ratio == pytest.approx(3778 / (3778 + 11331))
    assert (gpu.temperature_celsius, gpu.power_watts) == (41.0, 28.969)
    assert gpu.energy_joules_total == 128996.013
    assert (gpu.clock_sm_hertz, gpu.clock_memory_hertz) == (585e6, 5e9)
    assert gpu.interval_seconds == 0.0


def test_with_profiling_busy_is_the_activity_of_the_sms() -> None:
    busy, idle = read(capture("dcgm-exporter-4.4"), capture("dcgm-exporter-4.4"))

    assert (busy.utilization_ratio, busy.utilization_source) == (0.6123, "dcgm_sm_activity")
    assert (idle.index, idle.utilization_ratio) == (1, 0.0)
    assert busy.memory_reserved_bytes == 550 * MIB
    assert busy.interval_seconds == 5.0


def test_a_blank_value_of_dcgm_is_null() -> None:
    _, idle = read(capture("dcgm-exporter-4.4"))

    assert idle.energy_joules_total is None
    assert (
        one("DCGM_FI_DEV_GPU_TEMP 30", "DCGM_FI_DEV_POWER_USAGE 140737488355328").power_watts
        is None
    )


def test_mig_instances_are_told_apart() -> None:
    gpu, first, second = read(capture("dcgm-exporter-4.4-mig"))

    uuid = "GPU-559c7f49-3d11-4a9f-9a55-2f0c77aa1e43"
    assert (gpu.gpu, first.gpu, second.gpu) == (uuid, f"{uuid}-gi1", f"{uuid}-gi2")
    assert (gpu.is_mig_enabled, gpu.mig) == (True, None)
    assert (first.parent, first.mig) == (uuid, MigInstance(gpu_instance=1))
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert (first.utilization_ratio, first.utilization_source) == (0.41, "dcgm_utilization")
    assert (first.memory_used_bytes, second.memory_used_bytes) == (18432 * MIB, 0)


def test_what_the_exporter_repeats_with_each_instance_is_told_once_of_their_gpu() -> None:
    gpu, first, second = read(capture("dcgm-exporter-4.4-mig"))

    assert gpu.power_watts is not None
    assert gpu.temperature_celsius is not None
    assert (first.power_watts, second.power_watts) == (None, None)
    assert (gpu.memory_used_bytes, gpu.utilization_ratio) == (None, None)


def test_the_names_and_units_of_dcgm_4_7_mean_the_same() -> None:
    (old, *_), (new,) = read(capture("dcgm-exporter-4.4")), read(capture("dcgm-exporter-4.9"))

    different = {
        field: (getattr(old, field), getattr(new, field))
        for field in GpuMetrics.__struct_fields__
        if getattr(old, field) != getattr(new, field)
    }
    assert different == {}


def test_an_xid_is_told_when_the_last_one_changes() -> None:
    pages = [b'DCGM_FI_DEV_XID_ERRORS{UUID="GPU-1"} %d\n' % xid for xid in (31, 31, 79, 79, 0)]
    reader = PageReader(PLACE)

    told = [reader.read(page, START_NS + i * SECOND_NS) for i, page in enumerate(pages)]

    xids = [gpu.xid for (gpu,) in told if isinstance(gpu, GpuMetrics)]
    assert [xid and (xid.events_total, xid.critical_10m_count) for xid in xids] == [
        (0, 0),
        (0, 0),
        (1, 1),
        (1, 1),
        (1, 1),
    ], "the first may be of any age"
    assert xids[-1] is not None
    assert [event.xid for event in xids[-1].recent] == [79]


def test_without_the_metric_of_xids_nothing_is_known_of_them() -> None:
    assert one("DCGM_FI_DEV_GPU_TEMP 30").xid is None


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        pytest.param(("DCGM_FI_DEV_GPU_UTIL 130",), "utilization_ratio", None, id="130-percent"),
        pytest.param(("DCGM_FI_DEV_GPU_UTIL 100",), "utilization_ratio", 1.0, id="100-percent"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10", "DCGM_FI_DEV_FB_TOTAL 40"),
                     "memory_utilization_ratio", 0.25, id="used-by-total"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10", "DCGM_FI_DEV_FB_USED_PERCENT 0.3"),
                     "memory_utilization_ratio", 0.3, id="as-dcgm-says"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10", "DCGM_FI_DEV_FB_TOTAL 40",
                      "DCGM_FI_DEV_FB_USED_PERCENT 0.3"), "memory_utilization_ratio", 0.25,
                     id="used-by-total-first"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10",), "memory_utilization_ratio", None,
                     id="used-of-nobody-knows-what"),
        pytest.param(("DCGM_FI_DEV_FB_USED 0", "DCGM_FI_DEV_FB_FREE 0"),
                     "memory_utilization_ratio", None, id="no-memory-at-all"),
        pytest.param(("DCGM_FI_DEV_POWER_MGMT_LIMIT 300", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT 250"),
                     "power_limit_watts", 250.0, id="the-enforced-limit-first"),
        pytest.param(("DCGM_FI_DEV_POWER_MGMT_LIMIT 300",), "power_limit_watts", 300.0,
                     id="else-the-set-one"),
        pytest.param(("DCGM_FI_DEV_POWER_USAGE NaN", "DCGM_FI_DEV_GPU_TEMP 1"),
                     "power_watts", None, id="nan"),
        pytest.param(("DCGM_FI_DEV_SLOWDOWN_TEMP 93",), "temperature_slowdown_celsius", 93.0,
                     id="slowdown"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10", "DCGM_FI_DEV_FB_FREE 20",
                      "DCGM_FI_DEV_FB_RESERVED 2"), "memory_total_bytes", 32 * MIB,
                     id="total-of-its-parts"),
        pytest.param(("DCGM_FI_DEV_FB_USED 10", "DCGM_FI_DEV_FB_FREE 30"),
                     "memory_utilization_ratio", 0.25, id="used-by-what-can-be-used"),
        pytest.param(("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS 68",), "throttle_reasons",
                     ["sw_power_cap", "hw_thermal_slowdown"], id="reasons"),
        pytest.param(("DCGM_FI_DEV_PSTATE 0",), "performance_state", "P0", id="state"),
        pytest.param(("DCGM_FI_DEV_PCIE_REPLAY_COUNTER 7",), "pcie", PcieMetrics(replays_total=7),
                     id="pcie"),
        pytest.param(("DCGM_FI_PROF_PCIE_TX_BYTES 7e9", "DCGM_FI_PROF_PCIE_RX_BYTES 8e9"), "pcie",
                     PcieMetrics(sent_bytes_per_second=7e9, received_bytes_per_second=8e9),
                     id="pcie-traffic"),
        pytest.param(("DCGM_FI_PROF_NVLINK_TX_BYTES 3e11", "DCGM_FI_PROF_NVLINK_RX_BYTES 2e11",
                      "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL 500000"), "nvlink",
                     NvlinkMetrics(sent_bytes_per_second=3e11, received_bytes_per_second=2e11),
                     id="nvlink-traffic"),
        pytest.param(("DCGM_FI_DEV_ROW_REMAP_FAILURE 1",), "ecc", EccMetrics(is_remap_failed=True),
                     id="remap-failed"),
        pytest.param(("DCGM_FI_DEV_GPU_TEMP 1",), "ecc", None, id="no-part-without-readings"),
    ],
)  # fmt: skip
def test_readings_come_in_our_units_or_not_at_all(
    lines: tuple[str, ...], field: str, value: object
) -> None:
    assert getattr(one(*lines), field) == value


def test_without_a_utilization_there_is_no_source() -> None:
    gpu = one("DCGM_FI_DEV_GPU_TEMP 30")

    assert (gpu.utilization_ratio, gpu.utilization_source) == (None, None)


def test_an_index_that_is_none_is_the_first() -> None:
    (gpu,) = read(b'DCGM_FI_DEV_GPU_TEMP{gpu="first",uuid="GPU-1"} 30\n')

    assert (gpu.gpu, gpu.index) == ("GPU-1", 0)


def test_a_gpu_without_uuid_is_none() -> None:
    assert read(b'DCGM_FI_DEV_GPU_TEMP{gpu="0"} 30\n') == []


def test_more_gpus_than_any_machine_has_are_refused() -> None:
    page = b"".join(b'DCGM_FI_DEV_GPU_TEMP{UUID="%d"} 1\n' % i for i in range(257))

    with pytest.raises(PageError, match="257 GPUs"):
        read(page)


def test_main_readings_that_are_not_exported_are_named() -> None:
    reader = PageReader(PLACE)

    reader.read(b'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1"} 30\n', START_NS)

    assert set(reader.missing) == {
        f"dcgm-exporter.{field}"
        for field in ("utilization_ratio", "memory_used_bytes", "power_watts")
    }
