from typing import Any

import pytest

from handlers.alerting.metric_path import MetricPath, holders
from schemas.gpu import XidEvent, XidMetrics
from schemas.message import Message
from schemas.units import instant
from tests.support.samples import engine, gpu, host


def read(path: str, message: Message) -> list[tuple[str | None, Any]] | None:
    metric = MetricPath(path)
    found = holders(metric.place)(message)
    if found is None:
        return None
    element = metric.place[2]
    values = [
        (element and str(getattr(holder, element)), getattr(holder, metric.field))
        for holder in found
    ]
    return [
        (name, value if value is None or metric.convert is None else metric.convert(value))
        for name, value in values
    ]


XID = XidMetrics(
    events_total=2,
    critical_10m_count=1,
    recent=[
        XidEvent(xid=13, observed_at=instant(0), severity="info", text="an application's fault"),
        XidEvent(xid=79, observed_at=instant(0), severity="critical", text="off the bus"),
    ],
)


@pytest.mark.parametrize(
    ("path", "message", "found"),
    [
        pytest.param(
            "host.memory.utilization_ratio", host(memory=0.5), [(None, 0.5)], id="nested field"
        ),
        pytest.param("host.memory.utilization_ratio", host(), None, id="the struct is missing"),
        pytest.param(
            "gpu.temperature_celsius", gpu(temperature_celsius=50.0), [(None, 50.0)], id="field"
        ),
        pytest.param("gpu.temperature_celsius", gpu(), [(None, None)], id="not measured"),
        pytest.param("engine.requests_waiting", engine(waiting=3), [(None, 3)], id="engine"),
        pytest.param(
            "host.filesystems[mountpoint].utilization_ratio",
            host(disks={"/": 0.5, "/var": None}),
            [("/", 0.5), ("/var", None)],
            id="one per element",
        ),
        pytest.param("host.filesystems[mountpoint].utilization_ratio", host(), None, id="no list"),
        pytest.param(
            "gpu.xid.recent[xid].severity", gpu(xid=XID), [("13", 1.0), ("79", 3.0)], id="severity"
        ),
        pytest.param(
            "gpu.throttle_reasons[hw_slowdown|board_limit]",
            gpu(throttle_reasons=["gpu_idle", "board_limit"]),
            [(None, 1.0)],
            id="one of the words",
        ),
        pytest.param(
            "gpu.throttle_reasons[hw_slowdown]",
            gpu(throttle_reasons=["gpu_idle"]),
            [(None, 0.0)],
            id="none of the words",
        ),
        pytest.param(
            "gpu.throttle_reasons[hw_slowdown]", gpu(), [(None, None)], id="words not measured"
        ),
        pytest.param(
            "gpu.recovery_action[gpu_reset|node_reboot]",
            gpu(recovery_action="node_reboot"),
            [(None, 1.0)],
            id="the word itself",
        ),
    ],
)
def test_a_path_reads_its_parts(
    path: str, message: Message, found: list[tuple[str | None, float | None]] | None
) -> None:
    assert read(path, message) == found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("disk.used", "begin with one of host, gpu, engine, cache, stream"),
        ("host", "begin with one of"),
        ("host.memory.usage", "no 'usage' here"),
        ("host.boot_at.x", "'boot_at' has no such part"),
        ("host.filesystems[mount].used_bytes", "no 'mount' here"),
        ("host.filesystems.used_bytes", "'filesystems' has no such part"),
        ("host.memory[used_bytes].used_bytes", "'memory' has no such part"),
        ("gpu.index[0].x", "'index' has no such part"),
        ("gpu.index[0]", "'index' is not a number"),
        ("gpu.name", "'name' is not a number; write name[WORD|WORD]"),
        ("gpu.throttle_reasons", "write throttle_reasons[WORD|WORD]"),
        ("host.memory", "'memory' is not a number"),
        ("gpu.observed_at", "'observed_at' is not a number"),
        ("gpu.temperature celsius", "is not a field"),
        ("gpu.SUBJECT", "no 'SUBJECT' here"),
    ],
)
def test_a_wrong_path_is_refused_at_once(path: str, text: str) -> None:
    with pytest.raises(ValueError, match="metric") as refused:
        MetricPath(path)

    assert text in str(refused.value)
