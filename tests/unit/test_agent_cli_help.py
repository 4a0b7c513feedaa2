"""What `--help` shows in the narrowest terminals that are common."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from agent.cli.app import app

COLUMNS = "80"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*one, id=" ".join(one[0]) or "all") for one in commands(get_command(app))],
)
def test_no_option_is_cut_in_80_columns(path: tuple[str, ...], command: Any) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": COLUMNS})

    options = [one for one in command.params if not getattr(one, "hidden", False)]
    names = [name for one in options for name in (*one.opts, *one.secondary_opts)]
    assert shown.exit_code == 0
    assert [
        name
        for name in names
        if name.startswith("--") and not re.search(rf"{re.escape(name)}(?![\w-])", shown.output)
    ] == []
