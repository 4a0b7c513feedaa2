"""The command `report`: what the GPUs of a period cost, gave and wasted."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import typer
from rich.markup import escape

from agent.bus import Bus
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.start import ask, errors, fail
from agent.cli.writable import writable
from agent.client import ResourceAgent
from agent.recorded_load import seconds_of
from schemas.report import Report

Format: TypeAlias = Literal["text", "json", "markdown", "html"]

MOST_DAYS = 90
LIMIT_SECONDS = 40.0
_BY_SUFFIX: dict[str, Format] = {
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
}


def report(
    since: Annotated[str, typer.Option(help="how far back, like 12h or 7d; at most 90d")] = "7d",
    pool: Annotated[str | None, typer.Option(help="only this pool")] = None,
    node: Annotated[str | None, typer.Option(help="only this machine")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="default: by the file's name, else text")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="write it here, not to stdout")] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="write a page with charts, beside what is printed"),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="count simulated GPUs, too")
    ] = False,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Say what the GPUs cost, gave and wasted, and what to do about it; for people to send on."""
    try:
        seconds = max(3600.0, seconds_of(since))
    except ValueError as error:
        fail(error, code=2)
    if seconds > MOST_DAYS * 86_400:
        fail(ValueError(f"--since {since}: hours are kept for {MOST_DAYS} days"), code=2)
    if pool and node:
        fail(ValueError("give --pool or --node, not both"), code=2)
    if as_json and format_ not in (None, "json"):
        fail(ValueError(f"give --json or --format {format_}, not both"), code=2)
    chosen = (
        "json"
        if as_json
        else format_ or (_BY_SUFFIX.get(output.suffix.lower()) if output else None) or "text"
    )

    async def get(bus: Bus) -> Report:
        return await ResourceAgent(bus).get_report(
            seconds=seconds, pool=pool, node=node, simulated=simulated
        )

    where = (config, state_dir, password_file, nats_url)
    with writable(output, html):
        found = ask(where, get, quiet=chosen == "json", limit_seconds=LIMIT_SECONDS)
        text = rendered(found, chosen)
        if output is None:
            print(text, end="")
        else:
            _write(output, text)
        if html is not None:
            _write(html, rendered(found, "html"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    errors.print(f"wrote {escape(str(path))}")


def rendered(found: Report, chosen: Format) -> str:
    """The report in a format, ending with a line break."""
    if chosen == "json":
        return msgspec.json.encode(found).decode() + "\n"
    if chosen == "html":
        from agent.views.report_page import as_html  # noqa: PLC0415 - the others must start fast

        return as_html(found)
    from agent.views.report_text import as_markdown, as_text  # noqa: PLC0415

    return as_markdown(found) if chosen == "markdown" else as_text(found)
