"""`resource-agent up`: a private server (or yours) and every service, in one process."""

import asyncio
import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog

from agent import log as logs
from agent.assembly import Place, Simulation
from agent.bus import connect
from agent.bus.connection import safe_url
from agent.human import reason
from agent.identity import load_identity
from agent.nats_server.binary import fetch_server, find_server
from agent.nats_server.private import PrivateServer
from agent.runner import StopRequest, running, signals, until_stopped
from agent.settings import Settings
from agent.state_folder import StateFolderError, write_private_json
from agent.views.live import LiveView
from schemas.lifecycle import ALL_ROLES, ROLES, Role
from schemas.units import token

log = structlog.get_logger()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `up` was asked for; `nats_url` None = a private server."""

    nats_url: str | None = None
    nats_server: Path | None = None
    ready_file: Path | None = None
    for_seconds: float | None = None
    simulation: Simulation = dataclasses.field(default_factory=Simulation)
    live: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reached:
    """The server `up` works with: `url` has the password, `shown` is for people.

    `arguments` is what other commands need to find it.
    """

    url: str
    shown: str
    note: str = ""
    arguments: str = ""
    room_bytes: int | None = None


@contextlib.asynccontextmanager
async def reach_server(settings: Settings, options: UpOptions) -> AsyncIterator[Reached]:
    """The given server, or a private one that lives as long as this context."""
    if options.nats_url:
        shown = safe_url(options.nats_url)
        yield Reached(options.nats_url, shown, arguments=f" --nats-url {shown}")
        return
    binary = find_server(options.nats_server)
    if binary is None:
        binary = await asyncio.to_thread(
            fetch_server, lambda line: print(line, file=sys.stderr, flush=True)
        )
    server = PrivateServer(
        settings.state_folder(), binary=binary, root=settings.root, settings=settings.server
    )
    async with server:
        note = ""
        if not server.used_default_port:
            note = (
                f"Port {settings.server.preferred_port} is not ours here: "
                f"for other programs type   export NATS_URL={server.public_url}"
            )
        arguments = ""
        if settings.state_dir:
            arguments = f" --state-dir {shlex.quote(str(settings.state_folder()))}"
        yield Reached(
            server.url,
            server.public_url,
            note,
            arguments,
            room_bytes=server.max_file_store_bytes,
        )


async def up(settings: Settings, options: UpOptions, *, say: Callable[[str], None]) -> str | None:
    """Run until stopped. Returns the reason of a failure, or None.

    Raises:
        BusError, StateFolderError, NameTakenError, ServerNotFoundError, ServerStartError,
        StoreError: it cannot start; the text says what to do.
    """
    state_dir = settings.state_folder()
    request = StopRequest()
    try:
        identity = await asyncio.to_thread(load_identity, state_dir)
    except OSError as error:
        raise StateFolderError(f"cannot use state folder {state_dir}: {reason(error)}") from error
    if options.ready_file is not None:
        with contextlib.suppress(OSError):
            options.ready_file.unlink(missing_ok=True)  # of a run that was killed
        if not options.ready_file.absolute().parent.is_dir():
            raise StateFolderError(
                f"cannot write ready file {options.ready_file}: there is no such folder"
            )
    with signals(request), request.ends_start() as started:
        async with reach_server(settings, options) as server:
            place = Place(
                settings=settings,
                identity=identity,
                instance=settings.node_token(),
                simulation=options.simulation,
                server_room_bytes=server.room_bytes,
            )
            roles = ROLES if settings.executor.kind == "none" else ALL_ROLES
            async with running(server.url, roles, place, request):
                started()
                say(welcome(server, settings))
                with _ready_file(options.ready_file, server.url, state_dir):
                    log.info("ready", nats_url=server.shown, state_dir=str(state_dir))
                    async with _live(settings, server, options):
                        await until_stopped(request, options.for_seconds)
                log.info("stopping")
    return request.failure


@contextlib.asynccontextmanager
async def _live(settings: Settings, server: Reached, options: UpOptions) -> AsyncIterator[None]:
    wanted = options.live if options.live is not None else sys.stdout.isatty()
    if not wanted:
        yield
        return
    async with await connect(server.url, name="live-view", root=settings.root) as bus:
        async with LiveView(bus):
            logs.configure(settings.log.level, settings.log.format)  # to the stderr of the view
            yield
        logs.configure(settings.log.level, settings.log.format)


@contextlib.contextmanager
def _ready_file(path: Path | None, url: str, state_dir: Path) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        write_private_json(path, {"nats_url": url, "pid": os.getpid(), "state_dir": str(state_dir)})
    except OSError as error:
        raise StateFolderError(f"cannot write ready file {path}: {reason(error)}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def program() -> str:
    """How to call us again: in a fresh clone the program is only in the virtual environment."""
    if shutil.which("resource-agent"):
        return "resource-agent"
    if Path(sys.argv[0]).name == "resource-agent":
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m agent"


def welcome(server: Reached, settings: Settings) -> str:
    """What to do next: the address, three commands to paste, how to stop."""
    root, found_by = settings.root, server.arguments
    name = program()
    lines = [
        "",
        f"  resource-agent is up on {server.shown}   (state: {settings.state_folder()})",
        *([f"\n  {server.note}"] if server.note else []),
        "",
        "  Try, in another terminal:",
        f"    {name} watch{found_by} 'metrics.>'",
        f"    {name} put{found_by} greeting 'hello fleet' && {name} get{found_by} greeting",
        f"    nats --server {server.shown} req {root}.api.system.all ''",
        "",
        "  Stop with Ctrl-C.",
        "",
    ]
    return "\n".join(lines)


async def run_one(
    settings: Settings,
    url: str,
    role: Role,
    instance: str | None,
    simulation: Simulation,
    for_seconds: float | None,
) -> str | None:
    """Run one service until stopped. Returns the reason of a failure, or None."""
    state_dir = settings.state_folder()
    request = StopRequest()
    try:
        identity = await asyncio.to_thread(load_identity, state_dir)
    except OSError as error:
        raise StateFolderError(f"cannot use state folder {state_dir}: {reason(error)}") from error
    place = Place(
        settings=settings,
        identity=identity,
        instance=token(instance) if instance else settings.node_token(),
        simulation=simulation,
    )
    with signals(request), request.ends_start() as started:
        async with running(url, (role,), place, request):
            started()
            await until_stopped(request, for_seconds)
            log.info("stopping")
    return request.failure
