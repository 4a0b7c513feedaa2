"""What is logged, and what is not."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog

from agent import log


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_line_that_cannot_be_written_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - it cannot be closed in order
    monkeypatch.setattr(sys, "stderr", full)
    log.configure("info", "json")

    structlog.get_logger().error("a_line")

    with pytest.raises(OSError, match="No space left"):
        full.write("a line\n")
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_a_closed_stderr_ends_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure("info", "json")
        structlog.get_logger().error("before")

    structlog.get_logger().error("after")

    assert "before" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_shows_no_values_of_variables(
    style: Literal["text", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", style)
    try:
        fail(secret="s3cr" + "et")
    except ValueError:
        structlog.get_logger().exception("it_failed")

    said = capsys.readouterr().err
    assert "it_failed" in said
    assert "ValueError" in said
    assert "s3cret" not in said


def fail(secret: str) -> None:
    """Fails with a secret in a local variable."""
    header = f"Bearer {secret}"
    raise ValueError(len(header))
