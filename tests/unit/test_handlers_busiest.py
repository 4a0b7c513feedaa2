"""How busy the busiest disk and network interface of a machine are."""

from math import isnan

import pytest

from handlers.utilization.busiest import busiest_disk, fullest_network
from tests.support.samples import Link, host

GBIT = 10**9


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        pytest.param({"sda": 0.2, "sdb": 0.9}, 0.9, id="the busiest"),
        pytest.param({"sda": None, "sdb": 0.1}, 0.1, id="of those that are measured"),
        pytest.param({"sda": 0.0}, 0.0, id="at rest is measured"),
        pytest.param({"sda": None}, None, id="not measured"),
        pytest.param({}, None, id="no disk"),
        pytest.param(None, None, id="not readable"),
    ],
)
def test_the_busiest_disk_counts(
    disks: dict[str, float | None] | None, expected: float | None
) -> None:
    found = busiest_disk(host(disks_io=disks))

    assert (None if isnan(found) else found) == expected


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param({"eth0": (GBIT, 1e8, 2e7)}, 0.8, id="receiving"),
        pytest.param({"eth0": (GBIT, 2e7, 1e8)}, 0.8, id="sending; each direction has all of it"),
        pytest.param({"eth0": (GBIT, 1e7, 0.0), "eth1": (GBIT, 5e7, 0.0)}, 0.4, id="the fullest"),
        pytest.param({"eth0": (GBIT, None, 1e8)}, 0.8, id="one direction is measured"),
        pytest.param({"eth0": (GBIT, 1e8, None)}, 0.8, id="the other one is"),
        pytest.param({"eth0": (GBIT, 1.3e8, 0.0)}, 1.0, id="a rate above the link's"),
        pytest.param({"eth0": (GBIT, 0.0, 0.0)}, 0.0, id="at rest is measured"),
        pytest.param({"eth0": (None, 1e8, 1e8)}, None, id="speed unknown"),
        pytest.param({"eth0": (0.0, 1e8, 1e8)}, None, id="speed 0 is no speed"),
        pytest.param({"eth0": (GBIT, None, None)}, None, id="rates unknown"),
        pytest.param({"eth0": (None, 1e8, 0.0), "eth1": (GBIT, 1e7, 0.0)}, 0.08, id="one unknown"),
        pytest.param({}, None, id="no interface"),
        pytest.param(None, None, id="not readable"),
    ],
)
def test_the_fullest_interface_counts_by_its_speed(
    links: dict[str, Link] | None, expected: float | None
) -> None:
    found = fullest_network(host(links=links))

    assert (None if isnan(found) else found) == pytest.approx(expected)
