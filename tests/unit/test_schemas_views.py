import msgspec
import pytest

from schemas.host import CgroupMetrics, DiskIoMetrics, PressureMetrics
from schemas.views import (
    GPU_VIEWS,
    SYSTEM_VIEWS,
    engine_numbers,
    gpu_numbers,
    gpu_values,
    host_numbers,
    system_values,
)
from tests.support.samples import engine, gpu, host


@pytest.mark.parametrize("name", GPU_VIEWS)
def test_every_gpu_view_selects_fields_without_the_identity(name: str) -> None:
    values = gpu_values(name, gpu(name="H100"))

    assert values["name"] == "H100"
    assert not values.keys() & {"node", "gpu", "observed_at", "pool", "simulated"}


@pytest.mark.parametrize("name", SYSTEM_VIEWS)
def test_every_system_view_of_an_empty_sample_is_null_and_encodes(name: str) -> None:
    values = system_values(name, host())

    assert set(values) == set(SYSTEM_VIEWS[name])
    msgspec.json.encode(values)


def test_the_full_views_leave_nothing_out() -> None:
    assert "processes" in gpu_values("metrics", gpu())
    assert "network" in system_values("all", host())


def test_numbers_hold_only_what_was_measured() -> None:
    assert gpu_numbers(gpu(temperature_celsius=50, utilization_ratio=0.0)) == {
        "temperature_celsius": 50.0,
        "utilization_ratio": 0.0,
    }
    assert engine_numbers(engine(waiting=3)) == {"requests_waiting": 3.0}
    assert host_numbers(host()) == {}


def test_of_several_devices_the_highest_counts_and_unknown_ones_do_not() -> None:
    counters = {"read_bytes_total": 0, "write_bytes_total": 0, "reads_total": 0, "writes_total": 0}
    sample = host(
        disks={"/": 0.5, "/var": 0.7, "/mnt": None},
        pressure=[
            PressureMetrics(
                resource="io", some_10s_ratio=0.1, some_60s_ratio=0.2, some_seconds_total=1.0
            )
        ],
    )
    sample = msgspec.structs.replace(
        sample,
        disks=[
            DiskIoMetrics(device="a", busy_ratio=0.3, **counters),
            DiskIoMetrics(device="b", **counters),
        ],
        cgroup=CgroupMetrics(version=2, memory_utilization_ratio=0.9),
    )

    assert host_numbers(sample) == {
        "filesystem_max_utilization_ratio": 0.7,
        "disk_max_busy_ratio": 0.3,
        "pressure_io_some_60s_ratio": 0.2,
        "cgroup_memory_utilization_ratio": 0.9,
    }
