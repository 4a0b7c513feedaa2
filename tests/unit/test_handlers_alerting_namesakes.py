"""A list that names an element twice: one alert on it, by the worst."""

from datetime import UTC, datetime

import msgspec
import pytest

from schemas.alerts import AlertRule
from schemas.analysis import Severity
from schemas.gpu import XidEvent, XidMetrics
from schemas.metrics import GpuMetrics, HostMetrics
from tests.support.alerting import alerts_handler, played, transitions
from tests.support.samples import gpu, host


def mounts(*ratios: float | None) -> HostMetrics:
    """A host with as many file systems at one mount point."""
    twins = [
        msgspec.structs.replace(one, mountpoint="/data")
        for one in host(disks={str(n): r for n, r in enumerate(ratios)}).filesystems or ()
    ]
    return msgspec.structs.replace(host(), filesystems=twins)


def xids(*severities: Severity) -> GpuMetrics:
    """A GPU that lists one XID as often."""
    recent = [
        XidEvent(xid=79, observed_at=datetime(2027, 1, 15, tzinfo=UTC), severity=one, text="why")
        for one in severities
    ]
    return gpu(xid=XidMetrics(events_total=len(recent), critical_10m_count=0, recent=recent))


@pytest.mark.parametrize(
    "ratios",
    [(0.5, 0.99), (0.99, 0.5), (0.91, 0.99), (0.99, None), (None, 0.99), (0.99, 0.99)],
)
def test_of_file_systems_at_one_place_the_worst_counts(ratios: tuple[float | None, ...]) -> None:
    alerts = played(
        (0, mounts(*ratios)),
        (5, mounts(*ratios)),
        (10, mounts(*reversed(ratios))),
        (15, mounts(0.5, 0.6)),
    )

    assert [(a.transition, a.severity, a.part, a.value) for a in alerts] == [
        ("raised", "critical", "/data", 0.99),
        ("cleared", "critical", "/data", 0.6),
    ]


def test_one_xid_twice_in_a_list_is_one_alert_of_the_worse_severity() -> None:
    twice = xids("info", "critical", "warning")

    alerts = played((0, twice), (5, twice), (10, xids()))

    assert [(a.transition, a.severity, a.part) for a in alerts] == [
        ("raised", "critical", "g0 79"),
        ("cleared", "critical", "g0 79"),
    ]


SLOW_AND_FULL, FAST_AND_HALF_FULL, FAST_AND_BUSY = (1e9, 1.2e8), (1e10, 6e8), (1e10, 1e9)


@pytest.mark.parametrize("other", [FAST_AND_HALF_FULL, FAST_AND_BUSY], ids=["half full", "busy"])
@pytest.mark.parametrize("is_first", [True, False])
def test_of_interfaces_of_one_name_each_is_judged_by_its_own_speed(
    other: tuple[float, float], is_first: bool
) -> None:
    links = [SLOW_AND_FULL, other] if is_first else [other, SLOW_AND_FULL]
    busy = host(links={str(speed): (speed, received, 0.0) for speed, received in links})
    twins = [msgspec.structs.replace(one, interface="eth0") for one in busy.network or ()]
    busy = msgspec.structs.replace(busy, network=twins)

    alerts = played(*((second, busy) for second in range(0, 300, 5)))

    assert transitions(alerts) == [("raised", "critical")]


@pytest.mark.parametrize("ratios", [(0.5, 0.99), (0.99, 0.5)])
def test_what_is_named_twice_counts_once_in_an_aggregate(ratios: tuple[float, float]) -> None:
    rule = AlertRule(
        name="full",
        metric="host.filesystems[mountpoint].utilization_ratio",
        scope="fleet",
        aggregate="sum",
        warning=0.9,
    )

    alerts = played((0, mounts(*ratios)), (5, None), handler=alerts_handler(rule, scope="fleet"))

    assert [alert.value for alert in alerts] == [0.99]
