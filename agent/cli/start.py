"""What every command starts with: settings, the bus, and one line for what goes wrong."""

import asyncio
import dataclasses
import os
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import structlog
from rich.console import Console
from rich.markup import escape

from agent import log as logs
from agent.bus import Bus, BusError, connect
from agent.discovery import Found, find_bus, with_password
from agent.doctor import CONNECT_SECONDS
from agent.human import reason
from agent.settings import Loaded, Settings, SettingsError, load

T = TypeVar("T")

COMMAND_SECONDS = 10.0

Where = tuple[Path | None, Path | None, Path | None, str | None]
"""Which bus: --config, --state-dir, --nats-password-file, --nats-url."""

errors = Console(stderr=True)
# A line that is not for a terminal stays one: who reads it looks for what it says.
errors.soft_wrap = not errors.is_terminal


def fail(error: Exception, code: int = 1) -> NoReturn:
    """One line on stderr, and out."""
    text = getattr(error, "text", None) or reason(error)
    errors.print(f"[red]error:[/] {escape(str(text))}", soft_wrap=True)
    raise SystemExit(code)


def load_settings(
    config: Path | None,
    state_dir: Path | None,
    node: str | None = None,
    engines: list[str] | None = None,
    *,
    password_file: Path | None = None,
    least: Literal["info", "warning", "error"] = "error",
) -> Loaded:
    """Settings; logs from `least` up unless they say otherwise. Commands report errors anyway."""
    options: dict[str, tuple[str, Any]] = {}
    if state_dir is not None:
        options["state_dir"] = ("--state-dir", str(state_dir))
    if node == "":
        # An unset variable, as in `--node "$NODE"`: the host's name is not what was meant.
        fail(ValueError("--node is empty: give a name, or leave the option out"), code=2)
    if node is not None:
        options["node"] = ("--node", node)
    if password_file is not None:
        options["nats.password_file"] = ("--nats-password-file", str(password_file))
    if engines:
        options["agent.engines.targets"] = ("--engine", engines)
    loaded = load(environ=os.environ, config=config, options=options)
    level = loaded.settings.log.level if "log.level" in loaded.sources else least
    logs.configure(level, loaded.settings.log.format)
    structlog.contextvars.bind_contextvars(node=loaded.settings.node_token())
    return loaded


def server_address(text: str) -> str:
    """`text` with a scheme; wrong usage where it is no address of a NATS server."""
    url = text if "://" in text else f"nats://{text}"
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:
        is_address = False
    if not is_address or parts.scheme not in ("nats", "tls"):
        fail(
            ValueError(
                f"{_hidden(text)!r} is not the address of a NATS server; write for instance "
                "nats://127.0.0.1:4222"
            ),
            code=2,
        )
    return url


def bus_found(
    settings: Settings, nats_url: str | None, state_dir: Path | None = None, *, quiet: bool = False
) -> Found:
    """Where the bus is; says so on stderr.

    With `state_dir`, of the option, it is that of the `up` there, unless the address is given.

    Raises:
        BusError: nothing runs there.
    """
    found = find_bus(nats_url, os.environ, settings.state_folder())
    if found.guessed and state_dir is not None:
        raise BusError(nothing_runs(settings.state_folder()))
    found = dataclasses.replace(found, url=password_added(settings, server_address(found.url)))
    if not quiet:
        line = f"[dim]bus: {escape(_hidden(found.url))} ({escape(found.how)})[/]"
        errors.print(line, soft_wrap=True)
    return found


def nothing_runs(folder: Path) -> str:
    """That no `up` runs on this state folder, and what to do."""
    return (
        f"nothing runs from state folder {folder}: start "
        f"`resource-agent up --state-dir {shlex.quote(str(folder))}`, or give --nats-url"
    )


def password_added(settings: Settings, url: str) -> str:
    """`url` with the password of the settings' file.

    Raises:
        SettingsError: the file has none.
    """
    path = settings.nats.password_file
    try:
        return with_password(url, path)
    except ValueError as error:
        raise SettingsError(f"setting nats.password_file = {path!r}: {error}") from error


def _hidden(url: str) -> str:
    """`url` without user and password."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"


def with_bus(
    settings: Settings,
    found: Found,
    work: Callable[[Bus], Awaitable[T]],
    *,
    limit_seconds: float | None = COMMAND_SECONDS,
) -> T:
    """Run `work` on a connection, within the limit."""

    async def run() -> T:
        async with await connect(
            found.url, name="cli", root=settings.root, deadline_seconds=CONNECT_SECONDS
        ) as bus:
            async with asyncio.timeout(limit_seconds):
                return await work(bus)

    try:
        return asyncio.run(run())
    except TimeoutError:
        fail(TimeoutError(f"no answer within {limit_seconds:g} s"))


def ask(
    where: Where,
    work: Callable[[Bus], Awaitable[T]],
    *,
    quiet: bool,
    limit_seconds: float | None = COMMAND_SECONDS,
) -> T:
    """Run `work` on that bus; a value that it refuses is wrong usage."""
    config, state_dir, password_file, nats_url = where
    settings = load_settings(config, state_dir, password_file=password_file).settings
    found = bus_found(settings, nats_url, state_dir, quiet=quiet)
    try:
        return with_bus(settings, found, work, limit_seconds=limit_seconds)
    except ValueError as error:
        fail(error, code=2)
