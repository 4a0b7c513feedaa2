import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collectors import pressure as pressure_module
from agent.collectors.pressure import parse_pressure, read_pressure
from schemas.host import PressureMetrics

# The form of Linux 6.8's files, with figures that divide evenly.
IO_PRESSURE = """\
some avg10=12.50 avg60=6.25 avg300=1.20 total=3521298
full avg10=25.00 avg60=50.00 avg300=0.07 total=1920430
"""
CPU_PRESSURE_BEFORE_5_13 = "some avg10=0.41 avg60=0.59 avg300=0.19 total=3521298\n"


def folder(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_pressure_percents_become_ratios_and_microseconds_seconds() -> None:
    pressure = parse_pressure("io", IO_PRESSURE)

    assert pressure == PressureMetrics(
        resource="io",
        some_10s_ratio=0.125,
        some_60s_ratio=0.0625,
        some_seconds_total=3.521298,
        full_10s_ratio=0.25,
        full_60s_ratio=0.5,
        full_seconds_total=1.92043,
    )


def test_cpu_pressure_of_an_older_kernel_has_no_full_part() -> None:
    pressure = parse_pressure("cpu", CPU_PRESSURE_BEFORE_5_13)

    assert pressure.some_seconds_total == 3.521298
    assert (pressure.full_10s_ratio, pressure.full_seconds_total) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", id="full only"),
        pytest.param("some avg10=x avg60=0.00 avg300=0.00 total=0\n", id="not a number"),
    ],
)
def test_a_pressure_file_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no pressure"):
        parse_pressure("memory", text)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons that were logged, from a clean start."""
    reasons: list[str] = []
    pressure_module._say_missing.cache_clear()
    monkeypatch.setattr(
        pressure_module.log, "info", lambda _event, *, folder, reason: reasons.append(reason)
    )
    return reasons


def test_a_kernel_without_pressure_gives_none_and_says_so_once(
    tmp_path: Path, said: list[str]
) -> None:
    found = [read_pressure(tmp_path / "pressure") for _ in range(3)]

    assert found == [None, None, None]
    assert said == ["this kernel has none, or it was started with psi=0"]


def test_pressure_that_is_switched_off_is_none_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(pressure_module, "text", refuse(errno.EOPNOTSUPP))

    found = [read_pressure(tmp_path) for _ in range(3)]

    assert found == [None, None, None]
    assert said == ["the kernel was started with psi=0"]


def test_pressure_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure_module, "text", refuse(errno.EACCES))

    with pytest.raises(PermissionError):
        read_pressure(tmp_path)


def refuse(code: int) -> Callable[[str], str]:
    def text(_: str) -> str:
        raise OSError(code, os.strerror(code))

    return text


def test_every_pressure_file_that_exists_is_read(tmp_path: Path) -> None:
    files = {"cpu": CPU_PRESSURE_BEFORE_5_13, "io": IO_PRESSURE, "irq": "anything"}

    found = read_pressure(folder(tmp_path, files))

    assert found is not None
    assert [pressure.resource for pressure in found] == ["cpu", "io"]


def test_a_control_groups_files_have_their_own_names(tmp_path: Path) -> None:
    files = {"io.pressure": IO_PRESSURE, "io.stat": "8:0 rbytes=1", "cgroup.pressure": "1"}

    found = read_pressure(folder(tmp_path, files), ".pressure")

    assert found == [parse_pressure("io", IO_PRESSURE)]
