"""What the read-only commands ask and print: health, doctor, settings, subjects, watch."""

import asyncio
import contextlib
import shutil
import sys
import time

import msgspec
from rich.console import Console
from rich.table import Table

from agent import catalog
from agent.bus import Bus, BusError, connect
from agent.bus.serving import VERSION
from agent.bus.streams import STREAMS
from agent.discovery import Found
from agent.nats_server import find_server, server_version
from agent.settings import Loaded, Settings, describe
from schemas.api import HealthReply
from schemas.lifecycle import Role
from schemas.protocols import PublishError, RequestError
from schemas.units import SECOND_NS

console = Console()

MIB = 1024 * 1024
RECOMMENDED_SERVER = (2, 12, 0)
FLOOR_SERVER = (2, 9, 0)
LOW_DISK_BYTES = 2 * 1024 * MIB
RATE_WINDOW_SECONDS = 60


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of `doctor`; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


async def print_health(bus: Bus, role: Role | None, *, as_json: bool) -> bool:
    """Print the installation's health; True when ready (of `role`, when given)."""
    answer = await bus.request("api.health.detailed", timeout_seconds=5)
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    ready = health.ready
    if role is not None:
        ready = any(r.ready for r in health.roles if r.role == role)
    if as_json:
        print(answer.payload.decode())
        return ready
    table = Table(title=f"{health.status}, {'ready' if health.ready else 'not ready'}")
    for column in ("role", "instance", "state", "ready", "heartbeat", "parts"):
        table.add_column(column)
    for part in health.roles:
        if part.instances == 0:
            table.add_row(part.role, "-", part.state, "no", "", part.text)
    for one in health.instances:
        parts = ", ".join(
            f"{c.name} {c.state}" + (f" ({c.text})" if c.text else "")
            for c in one.record.components
        )
        table.add_row(
            one.role,
            one.instance,
            one.state,
            "yes" if one.ready else "no",
            f"{one.age_seconds:.0f} s ago",
            parts,
        )
    console.print(table)
    return ready


async def doctor_checks(settings: Settings, found: Found) -> list[Check]:
    """Every check, also when an early one fails."""
    checks = [_check_state_folder(settings), await asyncio.to_thread(_check_binary)]
    try:
        async with await connect(found.url, name="doctor", root=settings.root) as bus:
            seconds = await bus.round_trip_seconds()
            version = bus.server_version
            checks.append(
                Check(
                    name="bus",
                    ok=version >= FLOOR_SERVER,
                    text=f"nats-server {'.'.join(map(str, version))} answers in "
                    f"{seconds * 1000:.1f} ms ({found.how})",
                    remedy=""
                    if version >= RECOMMENDED_SERVER
                    else "2.12 or newer is recommended: this one no longer gets security fixes",
                )
            )
            checks += await _check_streams(bus)
            checks.append(await _check_services(bus))
    except (BusError, TimeoutError) as error:
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
        text=f"{folder}: {free / 1024**3:.1f} GiB free",
        remedy="" if free >= LOW_DISK_BYTES else "free some disk, or set --state-dir",
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
        except PublishError:
            missing.append(bus.names.stream(spec.name))
            continue
        share = state.bytes / state.max_bytes if state.max_bytes > 0 else 0.0
        lines.append(f"{spec.name.lower()} {share:.0%}")
    checks = [
        Check(
            name="streams",
            ok=not missing,
            text="missing: " + ", ".join(missing) if missing else "filled: " + ", ".join(lines),
            remedy="start `resource-agent up` or `run` once: it creates them" if missing else "",
        )
    ]
    if not missing:
        checks.append(Check(name="metrics history", ok=True, text=await _reach(bus)))
    return checks


async def _reach(bus: Bus) -> str:
    """How long FLEET_METRICS reaches at the present rate."""
    state = await bus.stream_state("METRICS")
    start_ns = time.time_ns() - RATE_WINDOW_SECONDS * SECOND_NS
    size = 0
    async for delivery in bus.read("METRICS", start_ns=start_ns):
        size += len(delivery.payload) + len(delivery.subject) + 30
    if size == 0:
        return "no metrics in the last minute"
    seconds = state.max_bytes / (size / RATE_WINDOW_SECONDS)
    return (
        f"{state.max_bytes / MIB:.0f} MiB = {seconds / 3600:.1f} h at the rate of the last minute "
        "(at most 24 h by age)"
    )


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
    table = Table()
    for column in ("setting", "value", "from", "meaning"):
        table.add_column(column, overflow="fold")
    for option in options:
        value = msgspec.json.encode(option.value).decode()
        shown = value if len(value) < 40 else value[:37] + "…"
        table.add_row(option.name, shown, option.source, option.description)
    console.print(table)


def print_subjects(*, asyncapi: bool, as_json: bool) -> None:
    """Print the catalog of the bus."""
    if asyncapi:
        document = catalog.asyncapi("fleet.v1", VERSION)
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    if as_json:
        print(msgspec.json.encode(catalog.rows()).decode())
        return
    table = Table()
    for column in ("subject below fleet.v1", "message or reply", "by", "kept in"):
        table.add_column(column, overflow="fold")
    for row in catalog.rows():
        table.add_row(row["subject"], row["message"], row["who"], row["kept_in"] or "")
    console.print(table)


async def watch_subject(
    bus: Bus,
    subject: str,
    *,
    for_seconds: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Print messages on `subject` (below the root) as they pass, one line each."""
    done = asyncio.Event()
    seen = 0

    def show(name: str, payload: bytes) -> None:
        nonlocal seen
        if done.is_set():
            return
        text = payload.decode(errors="replace")
        if as_json:
            try:
                body = msgspec.json.decode(payload)
            except msgspec.DecodeError:
                body = text
            print(msgspec.json.encode({"subject": name, "payload": body}).decode(), flush=True)
        else:
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {name} {text}\n")
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
