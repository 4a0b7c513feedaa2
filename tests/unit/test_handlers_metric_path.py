import pytest

from handlers.metric_path import MetricPath
from schemas.message import Message
from tests.support.samples import engine, gpu, host


@pytest.mark.parametrize(
    ("path", "message", "found"),
    [
        pytest.param(
            "host.memory.utilization_ratio", host(memory=0.5), [(None, 0.5)], id="nested field"
        ),
        pytest.param("host.memory.utilization_ratio", host(), [], id="the struct is missing"),
        pytest.param(
            "gpu.temperature_celsius", gpu("g7", temperature_celsius=50.0), [("g7", 50.0)], id="GPU"
        ),
        pytest.param("gpu.temperature_celsius", gpu("g7"), [("g7", None)], id="not measured"),
        pytest.param("engine.requests_waiting", engine("e1", waiting=3), [("e1", 3)], id="engine"),
        pytest.param(
            "host.filesystems[mountpoint].utilization_ratio",
            host(disks={"/": 0.5, "/var": None}),
            [("/", 0.5), ("/var", None)],
            id="one per element",
        ),
        pytest.param(
            "host.filesystems[mountpoint].utilization_ratio", host(), [], id="the list is missing"
        ),
    ],
)
def test_a_path_reads_its_parts(
    path: str, message: Message, found: list[tuple[str | None, float | None]]
) -> None:
    assert list(MetricPath(path).read(message)) == found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("disk.used", "begin with one of host, gpu, engine"),
        ("host", "begin with one of"),
        ("host.memory.usage", "no 'usage' here"),
        ("host.boot_at.x", "no 'x' here"),
        ("host.filesystems[mount].used_bytes", "no such part"),
        ("gpu.index[0].x", "no such part"),
    ],
)
def test_a_wrong_path_is_refused_at_once(path: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MetricPath(path)
