"""The checks of `doctor`: folder, server, archive, bus, streams, services, each with its remedy."""

import asyncio
import contextlib
import os
import shutil
import time

import msgspec

from agent import human
from agent.assembly import check_archive_store, compare_archive_owner
from agent.bus import Bus, BusError, connect
from agent.bus.bus import StreamState
from agent.bus.streams import STREAMS, storage_limit
from agent.discovery import Found
from agent.nats_server.binary import find_server, server_version
from agent.settings import Settings
from schemas.api import HealthReply
from schemas.protocols import PublishError, RequestError
from schemas.units import SECOND_NS

MIB = 1024 * 1024
RECOMMENDED_SERVER = (2, 12, 0)
FLOOR_SERVER = (2, 9, 0)
LOW_DISK_BYTES = 2 * 1024 * MIB
RATE_WINDOW_SECONDS = 60
CONNECT_SECONDS = 3.0
REACH_SECONDS = 5.0
MAX_AGE_SECONDS = next(s.max_age_seconds for s in STREAMS if s.name == "METRICS")
DENIED = "the server denied it"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of `doctor`; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


async def doctor_checks(settings: Settings, found: Found | str) -> list[Check]:
    """Every check, also when an early one fails; `found` may be why there is no bus."""
    checks = [
        _check_state_folder(settings),
        await asyncio.to_thread(_check_binary),
        *await _check_archive_store(settings),
    ]
    if isinstance(found, str):
        return [*checks, Check(name="bus", ok=False, text=found)]
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
            checks += await check_archive_owner(settings, bus)
            checks += await check_services(bus)
    except (BusError, PublishError, RequestError, TimeoutError) as error:
        checks.append(
            Check(
                name="bus",
                ok=False,
                text=str(error),
                remedy=""
                if "refused the login" in str(error)
                else "start `resource-agent up`, or give --nats-url",
            )
        )
    return checks


def _check_state_folder(settings: Settings) -> Check:
    folder = settings.state_folder()
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(
            name="state folder",
            ok=False,
            text=f"{folder}: this user cannot write to {place}",
            remedy="set --state-dir, or mend its owner or mount",
        )
    free = shutil.disk_usage(place).free
    return Check(
        name="state folder",
        ok=free >= LOW_DISK_BYTES,
        text=f"{folder}: {human.size(free)} free",
        remedy="" if free >= LOW_DISK_BYTES else "free some disk, or set --state-dir",
    )


async def _check_archive_store(settings: Settings) -> list[Check]:
    """One check, or one for each thing that is wrong."""
    text, troubles = await check_archive_store(settings)
    remedy = "then run doctor again; a running archive goes on by itself"
    return [
        Check(name="archive store", ok=False, text=trouble, remedy=remedy) for trouble in troubles
    ] or [Check(name="archive store", ok=True, text=text)]


async def check_archive_owner(settings: Settings, bus: Bus) -> list[Check]:
    """Whether the store's mark and the bus agree on whose it is; none where that is not known."""
    text, trouble = await compare_archive_owner(bus, settings)
    if trouble:
        remedy = "then run doctor again; docs/operations.md, “Whose the store is”, has each case"
        return [Check(name="archive owner", ok=False, text=trouble, remedy=remedy)]
    return [Check(name="archive owner", ok=True, text=text)] if text else []


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
    # At once: a server that hangs in one stream must not cost its time-out for each.
    states = await asyncio.gather(
        *(bus.stream_state(spec.name) for spec in STREAMS), return_exceptions=True
    )
    missing, stuck, lines = [], [], []
    for spec, state in zip(STREAMS, states, strict=True):
        if isinstance(state, StreamState):
            limit = f" of {human.size(state.max_bytes)}" if state.max_bytes > 0 else ""
            lines.append(f"{spec.name.lower()} {human.size(state.bytes)}{limit}")
        elif not isinstance(state, PublishError):
            raise state
        elif DENIED in str(state):
            return [
                Check(
                    name="streams",
                    ok=False,
                    text="the server does not let this user look at the streams",
                    remedy="use an address with a password: `up.json` in the state folder has "
                    "the private server's",
                )
            ]
        elif "timeout" in str(state):
            stuck.append(bus.names.stream(spec.name))
        else:
            missing.append(bus.names.stream(spec.name))
    if stuck:
        return [
            Check(
                name="streams",
                ok=False,
                text="no answer about: " + ", ".join(stuck),
                remedy="was the server's disk full? Make room, then restart nats-server; `up` "
                "restarts its own",
            )
        ]
    if len(missing) == len(STREAMS):
        try:
            await storage_limit(bus)
        except BusError as error:
            return [Check(name="streams", ok=False, text=str(error))]
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


async def check_services(bus: Bus) -> list[Check]:
    """How the services are, by their health, and what the cache says of its folder."""
    try:
        answer = await bus.request("api.health.detailed", timeout_seconds=3)
    except RequestError as error:
        start = "start `resource-agent up`"
        return [Check(name="services", ok=False, text=error.text, remedy=start)]
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    trouble = [f"{r.role}: {r.text or r.state}" for r in health.roles if r.state != "ok"]
    return [
        Check(
            name="services",
            ok=health.status != "critical",
            text="; ".join(trouble) or "all roles are ready",
            remedy="see `resource-agent health`" if trouble else "",
        ),
        *(
            Check(name="same host", ok=component.state != "degraded", text=component.text)
            for instance in health.instances
            for component in instance.record.components
            if component.name == "same_host"
        ),
    ]
