"""What the read-only commands ask and print: health, doctor, settings, subjects, watch."""

import asyncio
import contextlib
import sys
import time

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent import catalog, human
from agent.bus import Bus, BusError
from agent.bus.serving import VERSION
from agent.doctor import Check
from agent.settings import Loaded, describe
from schemas.api import HealthReply
from schemas.lifecycle import Role
from schemas.message import UNDECODABLE

PIPED_COLUMNS = 160
"""Of tables, and of what is folded, where it goes to no terminal."""
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_COLUMNS)

MAX_VALUE_CHARACTERS = 80
COLOURS = {"ok": "green", "off": "dim", "degraded": "yellow", "failed": "red"}


async def print_health(bus: Bus, role: Role | None, instance: str | None, *, as_json: bool) -> bool:
    """Print the installation's health, or that of `role`; True when ready, and nothing failed.

    With an `instance` of the role (a token), that one answers, of itself alone: then it is True
    when ready. Whoever restarts what is not must not restart an archiver whose store is away.
    """
    subject = "api.health.detailed"
    if instance is not None:
        subject = f"{subject}.{role}.{instance}"
    answer = await bus.request(subject, timeout_seconds=5)
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    roles = [one for one in health.roles if role in (None, one.role)]
    ready = health.ready if role is None else any(one.ready for one in roles)
    works = ready
    if instance is None:
        failed = [one for one in roles if one.state == "failed" and (one.expected or role)]
        works = ready and not failed
    if as_json:
        print(answer.payload.decode())
        return works
    if role is None:
        colour = {"healthy": "green", "degraded": "yellow", "critical": "red"}[health.status]
        console.print(f"[{colour}]{health.status}[/], {'ready' if ready else 'not ready'}")
    elif not roles:
        console.print(f"{role} is neither there nor expected")
    for part in roles:
        if part.instances == 0:
            console.print(f"\n[bold]{part.role}[/]  [{COLOURS[part.state]}]{part.text}[/]")
    for one in health.instances:
        if role not in (None, one.role):
            continue
        console.print(
            f"\n[bold]{one.role}[/] {one.instance}  [{COLOURS[one.state]}]{one.state}[/], "
            f"{'ready' if one.ready else 'not ready'}, heard {human.duration(one.age_seconds)} ago"
        )
        width = max((len(c.name) for c in one.record.components), default=0)
        for component in one.record.components:
            console.print(
                f"  [{COLOURS[component.state]}]{component.state:8}[/] {component.name:{width}}  "
                f"{escape(human.printable(component.text))} "
                f"[dim]({human.duration(one.component_age_seconds[component.name])} ago)[/]",
                soft_wrap=True,
            )
    return works


def print_checks(checks: list[Check], *, as_json: bool) -> None:
    """Print the outcome of `doctor`."""
    if as_json:
        print(msgspec.json.encode(checks).decode())
        return
    for check in checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        console.print(f"{mark} {check.name}: ", end="")
        console.print(check.text, markup=False, highlight=False, soft_wrap=True)
        if check.remedy:
            console.print(f"       → {check.remedy}", markup=False, soft_wrap=True)


def print_settings(loaded: Loaded, *, as_json: bool) -> None:
    """Print every setting with its value and source."""
    options = describe(loaded)
    if as_json:
        print(msgspec.json.encode(options).decode())
        return
    for option in options:
        value = msgspec.json.encode(option.value).decode()
        shown = value if len(value) < MAX_VALUE_CHARACTERS else f"{value[:MAX_VALUE_CHARACTERS]}…"
        source = "" if option.source == "default" else f"  [yellow]({escape(option.source)})[/]"
        console.print(f"[bold]{option.name}[/] = {escape(shown)}{source}", soft_wrap=True)
        console.print(f"    [dim]{escape(option.description)}[/]", soft_wrap=True)
    console.print(
        "\nEach is set in a file (--config settings.toml) or by a variable: "
        f"{options[0].variable}, [dim]…[/] agent.interval_seconds is "
        "RESOURCE_AGENT_AGENT__INTERVAL_SECONDS.\n"
        "Also read: NATS_URL (the bus), NATS_SERVER_BIN (the server that `up` runs), "
        "RESOURCE_AGENT_CONFIG (the settings file).",
        soft_wrap=True,
    )


def print_subjects(*, asyncapi: bool, as_json: bool) -> None:
    """Print the catalog of the bus."""
    if asyncapi:
        document = catalog.asyncapi("fleet.v1", VERSION)
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    if as_json:
        print(msgspec.json.encode(catalog.rows()).decode())
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("subject below fleet.v1", no_wrap=True)
    table.add_column("message or reply", no_wrap=True)
    table.add_column("by", overflow="fold")
    for row in catalog.rows():
        kept = f" [dim]→ {row['kept_in']}[/]" if row["kept_in"] else ""
        table.add_row(row["subject"], row["message"], row["who"] + kept)
    console.print(table)


async def watch_subject(
    bus: Bus,
    subject: str,
    *,
    for_seconds: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Print messages on `subject` as they pass, one line each; the root may stand in front.

    Raises:
        ValueError: no such subject can exist.
    """
    subject = subject.removeprefix(f"{bus.names.root}.")
    tokens = subject.split(".")
    if not all(tokens) or any(c.isspace() for c in subject) or ">" in tokens[:-1]:
        raise ValueError(f"{subject!r} is not a subject; write for instance 'metrics.gpu.>'")
    done = asyncio.Event()
    seen = 0

    def show(name: str, payload: bytes) -> None:
        try:
            show_line(name, payload)
        except OSError:  # whoever read our output has gone: `watch | head`
            done.set()

    def show_line(name: str, payload: bytes) -> None:
        nonlocal seen
        if done.is_set():
            return
        text = payload.decode(errors="replace")
        if as_json:
            try:
                body = msgspec.json.decode(payload)
            except UNDECODABLE:
                body = text
            print(msgspec.json.encode({"subject": name, "payload": body}).decode(), flush=True)
        else:
            line = human.printable(f"{name} {text}")
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            sys.stdout.flush()
        seen += 1
        if count is not None and seen >= count:
            done.set()

    try:
        await bus.subscribe(subject, show)
    except BusError as error:
        if "denied" not in str(error):
            raise
        raise BusError(
            f"{error}; without a password try 'metrics.>', 'alert.>' or 'recommendation.>': "
            "the address with all rights is in up.json, in the state folder of `up`"
        ) from error
    closed = asyncio.create_task(bus.closed.wait())
    finished = asyncio.create_task(done.wait())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(for_seconds):
            await asyncio.wait({closed, finished}, return_when=asyncio.FIRST_COMPLETED)
    for task in (closed, finished):
        task.cancel()
