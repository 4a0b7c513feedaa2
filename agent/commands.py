"""What the read-only commands ask and print: health, doctor, settings, subjects, watch."""

import asyncio
import contextlib
import shutil
import sys
import time

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent import catalog, human
from agent.assembly import check_archive_store
from agent.bus import Bus, BusError, connect
from agent.bus.serving import VERSION
from agent.bus.streams import STREAMS
from agent.discovery import Found
from agent.nats_server import find_server, server_version
from agent.settings import Loaded, Settings, describe
from schemas.api import HealthReply
from schemas.lifecycle import Role
from schemas.message import UNDECODABLE
from schemas.protocols import PublishError, RequestError
from schemas.units import SECOND_NS

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

MIB = 1024 * 1024
RECOMMENDED_SERVER = (2, 12, 0)
FLOOR_SERVER = (2, 9, 0)
LOW_DISK_BYTES = 2 * 1024 * MIB
RATE_WINDOW_SECONDS = 60
CONNECT_SECONDS = 3.0
REACH_SECONDS = 5.0
MAX_AGE_SECONDS = next(s.max_age_seconds for s in STREAMS if s.name == "METRICS")
MAX_VALUE_CHARACTERS = 80
DENIED = "the server denied it"
COLOURS = {"ok": "green", "off": "dim", "degraded": "yellow", "failed": "red"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of `doctor`; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


async def print_health(bus: Bus, role: Role | None, instance: str | None, *, as_json: bool) -> bool:
    """Print the installation's health; True when ready (of `role`, when given).

    With an `instance` of the role (a token), that one answers, of itself alone.
    """
    subject = "api.health.detailed"
    if instance is not None:
        subject = f"{subject}.{role}.{instance}"
    answer = await bus.request(subject, timeout_seconds=5)
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    ready = health.ready
    if role is not None:
        ready = any(r.ready for r in health.roles if r.role == role)
    if as_json:
        print(answer.payload.decode())
        return ready
    word = {"healthy": "green", "degraded": "yellow", "critical": "red"}[health.status]
    console.print(f"[{word}]{health.status}[/], {'ready' if health.ready else 'not ready'}")
    for part in health.roles:
        if part.instances == 0:
            console.print(f"\n[bold]{part.role}[/]  [{COLOURS[part.state]}]{part.text}[/]")
    for one in health.instances:
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
    return ready


async def doctor_checks(settings: Settings, found: Found) -> list[Check]:
    """Every check, also when an early one fails."""
    checks = [
        _check_state_folder(settings),
        await asyncio.to_thread(_check_binary),
        await _check_archive_store(settings),
    ]
    try:
        async with await connect(
            found.url, name="doctor", root=settings.root, deadline_seconds=CONNECT_SECONDS
        ) as bus:
            seconds = await bus.round_trip_seconds()
            version = bus.server_version
            checks.append(
                Check(
                    name="bus",
                    ok=version >= FLOOR_SERVER,
                    text=f"nats-server {'.'.join(map(str, version))} answers in "
                    f"{human.duration(seconds)} ({found.how})",
                    remedy=""
                    if version >= RECOMMENDED_SERVER
                    else "2.12 or newer is recommended: this one no longer gets security fixes",
                )
            )
            checks += await _check_streams(bus)
            checks.append(await _check_services(bus))
    except (BusError, PublishError, RequestError, TimeoutError) as error:
        checks.append(
            Check(
                name="bus",
                ok=False,
                text=str(error),
                remedy="start `resource-agent up`, or give --nats-url",
            )
        )
    return checks


def _check_state_folder(settings: Settings) -> Check:
    folder = settings.state_folder()
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Check(
        name="state folder",
        ok=free >= LOW_DISK_BYTES,
        text=f"{folder}: {human.size(free)} free",
        remedy="" if free >= LOW_DISK_BYTES else "free some disk, or set --state-dir",
    )


async def _check_archive_store(settings: Settings) -> Check:
    ok, text = await check_archive_store(settings)
    return Check(
        name="archive store",
        ok=ok,
        text=text,
        remedy="" if ok else "then run doctor again; a running archive goes on by itself",
    )


def _check_binary() -> Check:
    try:
        binary = find_server()
        version = server_version(binary) if binary else None
    except Exception as error:
        return Check(name="nats-server", ok=False, text=str(error), remedy="run `make setup`")
    if binary is None or version is None:
        return Check(
            name="nats-server", ok=False, text="no binary found", remedy="run `make setup`"
        )
    return Check(name="nats-server", ok=True, text=f"{binary}, {'.'.join(map(str, version))}")


async def _check_streams(bus: Bus) -> list[Check]:
    missing, lines = [], []
    for spec in STREAMS:
        try:
            state = await bus.stream_state(spec.name)
        except PublishError as error:
            if DENIED in str(error):
                return [
                    Check(
                        name="streams",
                        ok=False,
                        text="the server does not let this user look at the streams",
                        remedy="use an address with a password: `up.json` in the state folder has "
                        "the private server's",
                    )
                ]
            missing.append(bus.names.stream(spec.name))
            continue
        limit = f" of {human.size(state.max_bytes)}" if state.max_bytes > 0 else ""
        lines.append(f"{spec.name.lower()} {human.size(state.bytes)}{limit}")
    checks = [
        Check(
            name="streams",
            ok=not missing,
            text="missing: " + ", ".join(missing) if missing else ", ".join(lines),
            remedy="start `resource-agent up` or `run` once: it creates them" if missing else "",
        )
    ]
    if not missing:
        checks.append(await _reach(bus))
    return checks


async def _reach(bus: Bus) -> Check:
    """How long FLEET_METRICS reaches at the present rate."""
    state = await bus.stream_state("METRICS")
    now_ns = time.time_ns()
    size = 0
    deliveries = bus.read(
        "METRICS", start_ns=now_ns - RATE_WINDOW_SECONDS * SECOND_NS, end_ns=now_ns
    )
    try:
        async with asyncio.timeout(REACH_SECONDS), contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                size += len(delivery.payload) + len(delivery.subject) + 30
    except TimeoutError:
        return Check(
            name="metrics history",
            ok=False,
            text=f"a minute of metrics could not be read in {REACH_SECONDS:g} s",
            remedy="the server is very busy, or its disk is slow",
        )
    text = "no metrics in the last minute"
    if size and state.max_bytes > 0:
        seconds = min(state.max_bytes / (size / RATE_WINDOW_SECONDS), MAX_AGE_SECONDS)
        text = (
            f"{human.size(state.max_bytes)} hold {human.duration(seconds)} at the rate of the "
            "last minute (24 h at most)"
        )
    return Check(name="metrics history", ok=True, text=text)


async def _check_services(bus: Bus) -> Check:
    try:
        answer = await bus.request("api.health.basic", timeout_seconds=3)
    except RequestError as error:
        return Check(name="services", ok=False, text=error.text, remedy="start `resource-agent up`")
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    trouble = [f"{r.role}: {r.text or r.state}" for r in health.roles if r.state != "ok"]
    return Check(
        name="services",
        ok=health.ready,
        text="; ".join(trouble) or "all roles are ready",
        remedy="see `resource-agent health`" if trouble else "",
    )


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

    await bus.subscribe(subject, show)
    closed = asyncio.create_task(bus.closed.wait())
    finished = asyncio.create_task(done.wait())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(for_seconds):
            await asyncio.wait({closed, finished}, return_when=asyncio.FIRST_COMPLETED)
    for task in (closed, finished):
        task.cancel()
