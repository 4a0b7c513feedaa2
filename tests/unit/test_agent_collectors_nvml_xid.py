import threading

import pytest

from agent.collectors.nvml import xid
from schemas.gpu import XidMetrics
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS, instant
from tests.support.nvml import NOW_NS, NvmlStub, OpenedGpus

NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = 3, 4, 15, 999


def heard(gpu: GpuMetrics) -> int:
    return gpu.xid.events_total if gpu.xid is not None else -1


def count_watches() -> int:
    return sum(thread.name == "xid-watch" for thread in threading.enumerate())


def watched(gpus: OpenedGpus) -> None:
    gpus.sample_until(lambda gpu: heard(gpu) == 0)


def test_an_xid_is_told_with_its_meaning(stub: NvmlStub, gpus: OpenedGpus) -> None:
    watched(gpus)
    stub.xid(0, 79)

    gpu = gpus.sample_until(lambda gpu: heard(gpu) == 1)

    assert gpu.xid is not None
    (event,) = gpu.xid.recent
    assert (event.xid, event.severity, event.observed_at) == (79, "critical", instant(NOW_NS))
    assert "fell off the bus" in event.text
    assert event.gpu_instance is None
    assert gpu.xid.critical_10m_count == 1


@pytest.mark.parametrize(
    ("number", "severity", "critical"),
    [
        pytest.param(31, "info", 0, id="an application's"),
        pytest.param(63, "warning", 0, id="a warning"),
        pytest.param(94, "warning", 0, id="contained"),
        pytest.param(95, "critical", 1, id="not contained"),
        pytest.param(999, "warning", 0, id="unknown"),
    ],
)
def test_only_what_calls_for_the_operator_is_critical(
    stub: NvmlStub, gpus: OpenedGpus, number: int, severity: str, critical: int
) -> None:
    watched(gpus)
    stub.xid(0, number)

    gpu = gpus.sample_until(lambda gpu: heard(gpu) == 1)

    assert gpu.xid is not None
    assert gpu.xid.recent[0].severity == severity
    assert gpu.xid.critical_10m_count == critical


def test_after_ten_minutes_an_xid_counts_only_in_the_total(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    watched(gpus)
    stub.xid(0, 48)
    gpus.sample_until(lambda gpu: heard(gpu) == 1)
    gpus.now_ns += 600 * SECOND_NS - 1
    (still,) = gpus.sample()
    gpus.now_ns += 1

    (after,) = gpus.sample()

    assert still.xid is not None
    assert still.xid.critical_10m_count == 1
    assert after.xid == XidMetrics(events_total=1, critical_10m_count=0, recent=[])


def test_an_xid_of_a_mig_instance_says_which(stub: NvmlStub, gpus: OpenedGpus) -> None:
    watched(gpus)
    stub.xid(0, 43, gpu_instance=3)

    gpu = gpus.sample_until(lambda gpu: heard(gpu) == 1)

    assert gpu.xid is not None
    assert gpu.xid.recent[0].gpu_instance == 3


def test_each_gpu_has_its_own(two_gpus: NvmlStub, gpus: OpenedGpus) -> None:
    watched(gpus)
    two_gpus.xid(0, 13)
    gpus.sample_until(lambda gpu: heard(gpu) == 1)

    _, other = gpus.sample()

    assert heard(other) == 0


def test_a_storm_is_counted_and_its_last_twenty_are_told(gpus: OpenedGpus) -> None:
    log = xid.XidLog(lambda: NOW_NS)
    log.set_watched()
    for _ in range(50):
        log.add(31, None)
    log.add(79, None)

    told = log.read({})

    assert told is not None
    assert (told.events_total, len(told.recent), told.recent[-1].xid) == (51, 20, 79)


def test_a_watch_that_ends_lets_go_of_the_driver(stub: NvmlStub, gpus: OpenedGpus) -> None:
    watched(gpus)

    gpus.close()
    gpus.wait_for_watches()

    assert stub.calls("event_set_create") == stub.calls("event_set_free") == 1


def test_without_the_right_to_listen_xid_is_null_and_named(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.events", NO_PERMISSION)

    gpu = gpus.sample_until(lambda gpu: "xid" in gpu.errors)

    gpus.wait_for_watches()  # it is not tried again
    assert gpu.xid is None
    assert gpu.errors == {"xid": "XID errors cannot be heard of: Insufficient Permissions"}
    assert gpu.power_watts == 651.234


def test_a_driver_without_events_is_no_error(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.fail("0.events", NOT_SUPPORTED)
    gpus.sample()
    gpus.wait_for_watches()  # they end by themselves

    (gpu,) = gpus.sample()

    assert (gpu.xid, gpu.errors) == (None, {})


def test_a_watch_that_breaks_off_is_named_keeps_what_it_heard_and_starts_again(
    stub: NvmlStub, gpus: OpenedGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xid, "RETRY_SECONDS", 0.01)
    watched(gpus)
    stub.xid(0, 74)
    gpus.sample_until(lambda gpu: heard(gpu) == 1)
    stub.fail("0.event", UNKNOWN)
    broken = gpus.sample_until(lambda gpu: "xid" in gpu.errors)
    stub.xid(0, 79)

    healed = gpus.sample_until(lambda gpu: "xid" not in gpu.errors)
    stub.xid(0, 95)
    again = gpus.sample_until(lambda gpu: heard(gpu) == 2)

    assert heard(broken) == 1
    assert healed.is_reachable
    assert again.xid is not None
    assert [event.xid for event in again.xid.recent] == [74, 95]


def test_a_lost_gpu_still_tells_the_xid_that_says_why(stub: NvmlStub, gpus: OpenedGpus) -> None:
    watched(gpus)
    stub.xid(0, 79)
    gpus.sample_until(lambda gpu: heard(gpu) == 1)
    stub.fail("0.handle", GPU_IS_LOST)
    stub.fail("0.utilization", GPU_IS_LOST)

    (lost,) = gpus.sample()
    (still,) = gpus.sample()

    assert (lost.is_reachable, heard(lost)) == (False, 1)
    assert (still.uuid, still.is_reachable, heard(still)) == (lost.uuid, False, 1)


def test_a_gpu_that_comes_back_is_listened_to_once(stub: NvmlStub, gpus: OpenedGpus) -> None:
    gpus.sample()
    watches = count_watches()
    stub.fail("0.utilization", GPU_IS_LOST)
    gpus.sample()
    stub.set("0.utilization", "93 41")

    (back,) = gpus.sample()

    assert back.is_reachable
    assert count_watches() <= watches


def test_what_was_heard_outlives_the_drivers_being_opened_again(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    watched(gpus)
    stub.xid(0, 79)
    gpus.sample_until(lambda gpu: heard(gpu) == 1)
    gpus.close()

    gpus.reopen()
    (gpu,) = gpus.sample()

    assert heard(gpu) == 1
