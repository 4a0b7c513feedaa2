"""Each rule that is there from the start: raised when it should be, once, and cleared."""

from typing import Any

import msgspec
import pytest

from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.metric_path import MetricPath
from schemas.gpu import EccMetrics, XidEvent, XidMetrics
from schemas.host import DiskIoMetrics, FilesystemMetrics, NetworkMetrics, PressureMetrics
from schemas.message import Message
from schemas.streams import StreamMetrics
from schemas.units import instant
from tests.support.alerting import alerts_handler, played, transitions
from tests.support.samples import engine, gpu, host


def xid(*events: tuple[int, str]) -> XidMetrics:
    recent = [
        XidEvent(xid=number, observed_at=instant(0), severity=severity, text="why")  # type: ignore[arg-type]  # a str
        for number, severity in events
    ]
    return XidMetrics(events_total=len(recent), critical_10m_count=0, recent=recent)


def with_inodes(free: int) -> Message:
    filesystem = FilesystemMetrics(
        mountpoint="/", device="d", fstype="ext4", inodes_count=1000, inodes_free_count=free
    )
    return msgspec.structs.replace(host(), filesystems=[filesystem])


def with_disk(busy: float) -> Message:
    counters: dict[str, int] = dict.fromkeys(
        ("read_bytes_total", "write_bytes_total", "reads_total", "writes_total"), 0
    )
    disk = DiskIoMetrics(device="nvme0n1", busy_ratio=busy, **counters)
    return msgspec.structs.replace(host(), disks=[disk])


def link(received: float, sent: float, speed: float | None = 1e9) -> list[NetworkMetrics]:
    ways, kinds = ("received", "sent"), ("bytes", "packets")
    names = [f"{way}_{kind}_total" for way in ways for kind in kinds]
    names += [f"{way}_{kind}_total" for way in ("receive", "send") for kind in ("errors", "drops")]
    rates: dict[str, Any] = {
        "received_bytes_per_second": received,
        "sent_bytes_per_second": sent,
        "speed_bits_per_second": speed,
    }
    counters: dict[str, Any] = dict.fromkeys(names, 0)
    return [NetworkMetrics(interface="eth0", **counters, **rates)]


def stalled(full: float | None) -> list[PressureMetrics]:
    return [
        PressureMetrics(
            resource="io",
            some_10s_ratio=0.9,
            some_60s_ratio=0.9,
            some_seconds_total=9.0,
            full_60s_ratio=full,
        )
    ]


def stream(usage: float) -> StreamMetrics:
    used = round(usage * 1000)
    return StreamMetrics(
        stream="FLEET_DEAD",
        observed_at=instant(0),
        messages=1,
        used_bytes=used,
        limit_bytes=1000,
        usage_ratio=usage,
    )


def hot(celsius: float) -> Message:
    return gpu(temperature_celsius=celsius, temperature_slowdown_celsius=87.0)


CASES = {
    "gpu_temperature": (hot(82.0), hot(76.9), "warning"),
    "gpu_throttled": (
        gpu(throttle_reasons=["sw_power_cap", "hw_thermal_slowdown"]),
        gpu(throttle_reasons=["sw_power_cap"]),  # what a busy GPU always says
        "warning",
    ),
    "gpu_memory": (
        gpu(memory_utilization_ratio=0.98),
        gpu(memory_utilization_ratio=0.95),
        "warning",
    ),
    "gpu_low_utilization": (gpu(utilization_ratio=0.05), gpu(utilization_ratio=0.11), "info"),
    "gpu_unreachable": (gpu(is_reachable=False), gpu(), "critical"),
    "gpu_xid": (gpu(xid=xid((79, "critical"))), gpu(xid=xid()), "critical"),
    "gpu_recovery": (gpu(recovery_action="gpu_reset"), gpu(recovery_action="none"), "critical"),
    "gpu_ecc": (
        gpu(ecc=EccMetrics(volatile_uncorrected_total=1)),
        gpu(ecc=EccMetrics(volatile_uncorrected_total=0)),
        "warning",
    ),
    "gpu_row_remap_pending": (
        gpu(ecc=EccMetrics(is_remap_pending=True)),
        gpu(ecc=EccMetrics(is_remap_pending=False)),
        "warning",
    ),
    "gpu_row_remap_failed": (
        gpu(ecc=EccMetrics(is_remap_failed=True)),
        gpu(ecc=EccMetrics(is_remap_failed=False)),
        "critical",
    ),
    "host_memory": (host(memory=0.90), host(memory=0.84), "warning"),
    "disk_full": (host(disks={"/": 0.95}), host(disks={"/": 0.87}), "critical"),
    "disk_inodes": (with_inodes(50), with_inodes(101), "critical"),
    "disk_busy": (with_disk(0.95), with_disk(0.79), "warning"),
    "network_receive": (host(network=link(94e6, 0.0)), host(network=link(93e6, 0.0)), "warning"),
    "network_send": (host(network=link(0.0, 119e6)), host(network=link(0.0, 93e6)), "critical"),
    "pressure": (host(pressure=stalled(0.40)), host(pressure=stalled(0.04)), "critical"),
    "engine_queue": (engine(waiting=10), engine(waiting=4), "warning"),
    "engine_kv_cache": (engine(kv=0.98), engine(kv=0.84), "critical"),
    "stream_filling": (stream(0.80), stream(0.74), "warning"),
}


@pytest.mark.parametrize("rule", DEFAULT_RULES, ids=lambda rule: str(rule.name))
def test_a_default_rule_raises_once_what_holds_long_enough_and_clears_it(rule: Any) -> None:
    bad, good, severity = CASES[rule.name]
    handler = alerts_handler(scope=rule.scope)
    held = range(0, int(rule.for_seconds) + 1, 5)
    end = held[-1] + 5

    early = played(*((second, bad) for second in held[:-1]), handler=handler)
    raised = played(*((second, bad) for second in (held[-1], end)), handler=handler)
    after = [(end + second, good) for second in range(5, int(rule.clear_for_seconds) + 15, 5)]
    cleared = played(*after, handler=handler)

    assert early == []
    assert {alert.rule.split("-")[0] for alert in raised + cleared} == {rule.name}
    assert transitions(raised + cleared) == [("raised", severity), ("cleared", severity)]
    assert raised[0].text.startswith(f"{rule.summary}: ")
    assert cleared[0].cleared_because in ("recovered", "gone")


@pytest.mark.parametrize("rule", DEFAULT_RULES, ids=lambda rule: str(rule.name))
def test_a_number_that_wavers_at_its_threshold_does_not_flap(rule: Any) -> None:
    wavers = not MetricPath(rule.metric).is_yes_or_no and not rule.metric.endswith("_total")

    assert not wavers or rule.clear_margin > 0 or rule.clear_for_seconds > 0


def test_a_gpu_that_answers_now_and_then_is_one_alert() -> None:
    lost = [(second, gpu(is_reachable=second % 20 == 0)) for second in range(0, 600, 5)]

    assert transitions(played(*lost)) == [("raised", "critical")]


@pytest.mark.parametrize("rule", DEFAULT_RULES, ids=lambda rule: str(rule.name))
def test_a_default_rule_says_nothing_of_what_was_not_measured(rule: Any) -> None:
    steps = [(second, message) for second in range(0, 3600, 5) for message in (host(), gpu())]

    assert played(*steps, handler=alerts_handler(rule, scope=rule.scope)) == []


def test_each_xid_of_a_gpu_is_an_alert_of_its_own_by_its_severity() -> None:
    first = gpu("g0", xid=xid((13, "info"), (63, "warning")))
    second = gpu("g1", xid=xid((79, "critical")))

    alerts = played((0, first), (0, second), (5, first), (5, second), (10, gpu("g0", xid=xid())))

    raised = {(a.part, a.severity) for a in alerts if a.transition == "raised"}
    assert raised == {("g0 13", "info"), ("g0 63", "warning"), ("g1 79", "critical")}
    ended = [(a.part, a.cleared_because) for a in alerts if a.transition == "cleared"]
    assert ended == [("g0 13", "gone"), ("g0 63", "gone")]
    assert "why" in alerts[0].text


@pytest.mark.parametrize("speed", [None, 0.0], ids=["unknown", "zero"])
def test_an_interface_of_unknown_speed_is_never_full(speed: float | None) -> None:
    busy = host(network=link(1e9, 1e9, speed))

    assert played(*((second, busy) for second in range(0, 600, 5))) == []
