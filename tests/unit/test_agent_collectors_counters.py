from typing import NamedTuple

import pytest

from agent.collectors.counters import (
    busy_ratio,
    core_ratios,
    disk_metrics,
    network_metrics,
    per_second,
)


class CpuTimes(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0


class MacCpuTimes(NamedTuple):
    user: float
    nice: float
    system: float
    idle: float


class Disk(NamedTuple):
    read_count: int
    write_count: int
    read_bytes: int
    write_bytes: int
    busy_time: int


class MacDisk(NamedTuple):
    read_count: int
    write_count: int
    read_bytes: int
    write_bytes: int


class Network(NamedTuple):
    bytes_sent: int
    bytes_recv: int
    packets_sent: int
    packets_recv: int
    errin: int = 1
    errout: int = 2
    dropin: int = 3
    dropout: int = 4


class Link(NamedTuple):
    isup: bool
    speed: int


@pytest.mark.parametrize(
    ("now", "before", "elapsed", "expected"),
    [
        pytest.param(30.0, 10.0, 5.0, 4.0, id="(30 - 10) / 5"),
        pytest.param(10.0, 10.0, 5.0, 0.0, id="no growth is a measured zero"),
        pytest.param(10.0, None, 5.0, None, id="no previous value"),
        pytest.param(9.0, 10.0, 5.0, None, id="counter reset"),
        pytest.param(30.0, 10.0, 0.0, None, id="no time passed"),
    ],
)
def test_a_rate_is_growth_over_time_and_never_negative(
    now: float, before: float | None, elapsed: float, expected: float | None
) -> None:
    assert per_second(now, before, elapsed) == expected


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        pytest.param(CpuTimes(12, 11, 17), CpuTimes(10, 10, 10), 0.3, id="3 busy of 10"),
        pytest.param(CpuTimes(11, 10, 12, 7), CpuTimes(10, 10, 10, 0), 0.1, id="iowait is idle"),
        pytest.param(
            CpuTimes(14, 10, 16, 0, 4), CpuTimes(10, 10, 10), 0.4, id="guests are not counted twice"
        ),
        pytest.param(
            CpuTimes(15, 10, 15, 9), CpuTimes(10, 10, 10, 10), 0.5, id="iowait may run backwards"
        ),
        pytest.param(MacCpuTimes(11, 0, 1, 18), MacCpuTimes(10, 0, 0, 10), 0.2, id="macOS"),
        pytest.param(CpuTimes(1, 1, 1), CpuTimes(10, 10, 10), None, id="reset"),
        pytest.param(CpuTimes(1, 1, 1), CpuTimes(1, 1, 1), None, id="no time passed"),
        pytest.param(CpuTimes(1, 1, 1), None, None, id="first reading"),
        pytest.param(None, CpuTimes(1, 1, 1), None, id="failed reading"),
    ],
)
def test_cpu_use_is_the_busy_share_of_the_time_between(
    now: CpuTimes | None, before: CpuTimes | None, expected: float | None
) -> None:
    assert busy_ratio(now, before) == pytest.approx(expected)


def test_cores_are_told_only_when_every_core_can_be() -> None:
    before = [CpuTimes(0, 0, 0), CpuTimes(0, 0, 0)]

    assert core_ratios([CpuTimes(1, 0, 3), CpuTimes(1, 0, 0)], before) == [0.25, 1.0]
    assert core_ratios([CpuTimes(1, 0, 3), CpuTimes(0, 0, 0)], before) == []
    assert core_ratios([CpuTimes(1, 0, 3)], before) == []
    assert core_ratios([CpuTimes(1, 0, 3)], []) == []


def test_disk_rates_come_from_two_readings() -> None:
    metrics = disk_metrics("sda", Disk(30, 20, 3000, 2000, 1500), Disk(10, 10, 1000, 0, 500), 2.0)

    assert (metrics.read_bytes_total, metrics.write_bytes_total) == (3000, 2000)
    assert (metrics.reads_total, metrics.writes_total) == (30, 20)
    assert (metrics.read_bytes_per_second, metrics.write_bytes_per_second) == (1000.0, 1000.0)
    assert (metrics.reads_per_second, metrics.writes_per_second) == (10.0, 5.0)
    assert (metrics.busy_seconds_total, metrics.busy_ratio) == (1.5, 0.5)


def test_a_disk_is_never_more_than_always_busy() -> None:
    metrics = disk_metrics("sda", Disk(0, 0, 0, 0, 2004), Disk(0, 0, 0, 0, 0), 2.0)

    assert metrics.busy_ratio == 1.0


def test_a_disk_counter_that_was_reset_has_no_rate() -> None:
    metrics = disk_metrics("sda", Disk(1, 1, 10, 10, 1), Disk(9, 9, 90, 90, 9), 2.0)

    assert metrics.read_bytes_total == 10
    assert metrics.read_bytes_per_second is None
    assert metrics.write_bytes_per_second is None
    assert metrics.reads_per_second is None
    assert metrics.writes_per_second is None
    assert metrics.busy_ratio is None


def test_a_disk_without_busy_time_leaves_it_null() -> None:
    metrics = disk_metrics("disk0", MacDisk(3, 2, 30, 20), MacDisk(1, 1, 10, 10), 1.0)

    assert (metrics.busy_seconds_total, metrics.busy_ratio) == (None, None)
    assert metrics.read_bytes_per_second == 20.0


def test_network_rates_come_from_two_readings() -> None:
    now, before = Network(500, 3000, 50, 30), Network(100, 1000, 10, 10)

    metrics = network_metrics("eth0", now, before, 2.0, Link(isup=True, speed=1000))

    assert (metrics.sent_bytes_total, metrics.received_bytes_total) == (500, 3000)
    assert (metrics.sent_packets_total, metrics.received_packets_total) == (50, 30)
    assert (metrics.receive_errors_total, metrics.send_errors_total) == (1, 2)
    assert (metrics.receive_drops_total, metrics.send_drops_total) == (3, 4)
    assert (metrics.sent_bytes_per_second, metrics.received_bytes_per_second) == (200.0, 1000.0)
    assert (metrics.sent_packets_per_second, metrics.received_packets_per_second) == (20.0, 10.0)
    assert (metrics.is_up, metrics.speed_bits_per_second) == (True, 1e9)


def test_a_network_counter_that_was_reset_has_no_rate() -> None:
    metrics = network_metrics("eth0", Network(1, 1, 1, 1), Network(9, 9, 9, 9), 2.0, None)

    assert metrics.received_bytes_per_second is None
    assert metrics.sent_bytes_per_second is None
    assert metrics.received_packets_per_second is None
    assert metrics.sent_packets_per_second is None


@pytest.mark.parametrize(
    ("link", "is_up"),
    [
        pytest.param(None, None, id="link not known"),
        pytest.param(Link(isup=False, speed=0), False, id="speed not known"),
    ],
)
def test_an_unknown_speed_is_null(link: Link | None, is_up: bool | None) -> None:
    metrics = network_metrics("eth0", Network(1, 1, 1, 1), None, 2.0, link)

    assert (metrics.is_up, metrics.speed_bits_per_second) == (is_up, None)
