"""Commands on cached values: get, put, delete, stat, keys, warm."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.markup import escape

from agent import human
from agent.cli.namespace import ask_cache
from agent.cli.options import AsJson, Config, Namespace, NatsUrl, PasswordFile, StateDir
from agent.cli.output import (
    counted,
    print_fields,
    print_json,
    quoted,
    transferring,
    write_value,
)
from agent.cli.start import Where, errors, fail
from agent.client import CacheClient
from schemas.api import WarmReply

T = TypeVar("T")

MAX_READ_BYTES = 1024**3
"""No cache keeps a larger value; what would be read for nothing is not read."""
TRANSFER_SECONDS = 300.0
WARM_POLL_SECONDS = 0.2

app = typer.Typer()

_Key = Annotated[str, typer.Argument(help="the key, up to 10 KiB")]


@app.command()
def get(
    key: _Key,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; default: stdout")
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore/--no-restore", help="ask the archive on a miss in RAM")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Print a cached value, or write it to a file; exit code 1 when there is none."""
    if as_json and output is None:
        fail(ValueError("--json needs --output FILE for the value"), code=2)

    async def work(cache: CacheClient) -> bytes | None:
        with transferring("getting") as on_progress:
            return await cache.get(key, restore=restore, on_progress=on_progress)

    value = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    write_value(key, namespace, value, output, as_json=as_json)


@app.command()
def put(
    key: _Key,
    value: Annotated[
        str | None, typer.Argument(help="the value; - reads standard input", show_default=False)
    ] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    file: Annotated[Path | None, typer.Option("--file", "-f", help="read the value here")] = None,
    ttl: Annotated[float | None, typer.Option(min=0, help="seconds to live")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="may be repeated")] = None,
    request_class: Annotated[
        str | None, typer.Option("--class", help="class of request, for statistics")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cache a value: from the command line, a file, or standard input."""
    if (value is None) == (file is None):
        fail(ValueError("give either a value (- for standard input) or --file FILE"), code=2)
    content = _content(value, file)

    async def work(cache: CacheClient) -> str:
        with transferring("putting") as on_progress:
            return await cache.put(
                key,
                content,
                ttl_seconds=ttl,
                tags=tag or (),
                request_class=request_class,
                on_progress=on_progress,
            )

    version = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    if as_json:
        print_json({"key": key, "version": version, "size_bytes": len(content)})
    else:
        errors.print(f"stored {human.size(len(content))} as {quoted(key)}, version {version}")


@app.command()
def delete(
    key: Annotated[str | None, typer.Argument(help="the key, up to 10 KiB")] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    tag: Annotated[
        str | None, typer.Option(help="instead of a key: all that was put with this tag")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a value from the cache and its archive, or all values with a tag."""
    if (key is None) == (tag is None):
        fail(ValueError("give either a key or --tag TAG"), code=2)

    async def work(cache: CacheClient) -> tuple[msgspec.Struct, str]:
        if tag is not None:
            tagged = await cache.delete_tag(tag)
            void = "archived copies with that tag are void"
            return tagged, f"deleted {tagged.entries} with tag {quoted(tag)}; {void}"
        reply = await cache.delete(str(key))
        said = "deleted" if reply.existed else "it was not in RAM; archived copies are void"
        return reply, said

    reply, said = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    if as_json:
        print_json(reply)
    else:
        errors.print(said)


@app.command()
def stat(
    key: Annotated[
        str | None, typer.Argument(help="of this entry; default: of the namespace")
    ] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show a namespace's statistics, or what is known of one entry (exit code 1: nothing)."""

    async def work(cache: CacheClient) -> tuple[msgspec.Struct, bool]:
        if key is None:
            return await cache.stats(), True
        meta = await cache.meta(key)
        return meta, meta.found

    reply, found = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    if as_json:
        print_json(reply)
    elif found:
        print_fields(reply)
    else:
        errors.print(
            f"{quoted(key or '')} is neither in RAM nor on its way to the archive of namespace "
            f"{escape(namespace)}; `get` asks the archive too"
        )
    raise SystemExit(0 if found else 1)


@app.command()
def keys(
    prefix: Annotated[str, typer.Argument(help="only keys that begin so")] = "",
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys in RAM, one a line, in no telling order."""

    async def work(cache: CacheClient) -> tuple[list[str], bool]:
        listed: list[str] = []
        async for key in cache.keys(prefix):
            if len(listed) == limit:
                return listed, True
            listed.append(key)
        return listed, False

    listed, more = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    if as_json:
        print_json({"keys": listed, "more": more})
        return
    for key in listed:
        print(human.printable(key))
    if more:
        errors.print("there are more")


@app.command()
def warm(
    key: Annotated[list[str] | None, typer.Argument(help="keys to bring into RAM")] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="file with one key a line; - reads stdin")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring archived values back into RAM before they are asked for."""
    wanted = [*(key or []), *_lines(file)]
    if not wanted:
        fail(ValueError("no keys: name them, or --file FILE with one a line"), code=2)

    async def work(cache: CacheClient) -> WarmReply:
        with counted(len(wanted), "warming") as show:
            return await _warm(cache, wanted, show)

    reply = _ask((config, state_dir, password_file, nats_url), namespace, work, as_json)
    left = reply.absent + reply.failed + reply.left_out
    if as_json:
        print_json(reply)
    else:
        errors.print(
            f"{reply.restored} restored, {reply.here} here already, {reply.absent} not archived, "
            f"{reply.failed} failed, {reply.left_out} without room"
        )
    raise SystemExit(1 if left else 0)


def _ask(
    where: Where, namespace: str, work: Callable[[CacheClient], Awaitable[T]], quiet: bool
) -> T:
    """Run `work` on the namespace."""
    return ask_cache(
        where,
        namespace,
        lambda bus: work(CacheClient(bus).of(namespace)),
        quiet=quiet,
        limit_seconds=TRANSFER_SECONDS,
    )


def _content(value: str | None, file: Path | None) -> bytes:
    if file is not None and file != Path("-"):
        with file.open("rb") as opened:
            content = opened.read(MAX_READ_BYTES + 1)
    elif value not in (None, "-"):
        return os.fsencode(str(value))
    else:
        content = sys.stdin.buffer.read(MAX_READ_BYTES + 1)
    if len(content) > MAX_READ_BYTES:
        fail(ValueError(f"more than {human.size(MAX_READ_BYTES)}: no cache keeps that"), code=2)
    return content


def _lines(file: Path | None) -> list[str]:
    """The keys in `file`, one a line; empty lines are left out."""
    if file is None:
        return []
    content = sys.stdin.buffer.read() if file == Path("-") else file.read_bytes()
    try:
        return [line for line in content.decode().split("\n") if line]
    except UnicodeDecodeError as error:
        fail(ValueError(f"{file}: keys are UTF-8, one a line: {error}"), code=2)


async def _warm(cache: CacheClient, keys: list[str], show: Callable[[int], None]) -> WarmReply:
    """Queue the keys and wait until the queue is worked off."""
    reply = await cache.warm(keys)
    while reply.waiting:
        show(max(0, len(keys) - reply.waiting))
        await asyncio.sleep(WARM_POLL_SECONDS)
        reply = await cache.warm()
    return reply
