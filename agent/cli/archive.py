"""`resource-agent archive`: what is archived, dead letters, work on the whole archive."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from agent import human
from agent.archive_client import ArchiveClient
from agent.archive_outage import store_trouble
from agent.bus import Bus
from agent.cli.archive_asking import ask_archive
from agent.cli.archive_dead import dead
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
from schemas.api import ArchiveEntry, ArchiveJob, ArchiveStatus

LIMIT_SECONDS = 300.0

app = typer.Typer(
    name="archive", help="Shows and tends what was evicted and kept.", no_args_is_help=True
)


@app.command()
def status(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show what the archive of a namespace holds, what waits, and what went wrong."""

    async def work(bus: Bus) -> tuple[ArchiveStatus, str]:
        return await ArchiveClient(bus, namespace).status(), await store_trouble(bus)

    where = (config, state_dir, password_file, nats_url)
    reply, trouble = ask_archive(where, work, as_json=as_json)
    if as_json:
        print_json(reply)
    else:
        print_fields(reply)
    if trouble:
        errors.print(f"its {escape(trouble)}")


@app.command("ls")
def list_entries(
    prefix: Annotated[str, typer.Argument(help="only keys that begin so")] = "",
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    after: Annotated[str, typer.Option(help="go on behind this key of an earlier list")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """List what can be restored, by key: size, stored bytes, expiry."""

    async def work(bus: Bus) -> tuple[list[ArchiveEntry], bool]:
        found: list[ArchiveEntry] = []
        client = ArchiveClient(bus, namespace)
        async for entry in client.entries(prefix, after):
            if len(found) == limit:
                return found, True
            found.append(entry)
        if not found:
            await client.check_known()
        return found, False

    where = (config, state_dir, password_file, nats_url)
    entries, more = ask_archive(where, work, as_json=as_json)
    if as_json:
        print_json({"entries": entries, "more": more})
        return
    for entry in entries:
        until = "never expires" if entry.expires_at is None else f"until {entry.expires_at:%F %T}Z"
        sizes = f"{human.size(entry.size_bytes):>10} {human.size(entry.stored_bytes):>10}"
        print(f"{sizes}  {until:26}  {human.printable(entry.key)}")
    if more:
        errors.print(f"there are more: --after {quoted(entries[-1].key)}")


@app.command()
def get(
    key: Annotated[str, typer.Argument(help="the key, up to 10 KiB")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; default: stdout")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an archived value, or write it to a file; exit code 1 when there is none."""
    if as_json and output is None:
        fail(ValueError("--json needs --output FILE for the value"), code=2)

    async def work(bus: Bus) -> bytes | None:
        client = ArchiveClient(bus, namespace)
        with transferring("restoring") as on_progress:
            value = await client.get(key, on_progress)
        if value is None:
            await client.check_known()
        return value

    where = (config, state_dir, password_file, nats_url)
    value = ask_archive(where, work, as_json=as_json)
    write_value(key, namespace, value, output, as_json=as_json)


@app.command()
def rm(
    keys: Annotated[list[str], typer.Argument(help="keys to remove")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Remove entries for good: through the cache, so that no copy on its way comes back."""

    async def work(bus: Bus) -> None:
        cache = CacheClient(bus).of(namespace)
        with counted(len(keys), "removing") as show:
            for done, key in enumerate(keys, 1):
                await cache.delete(key)
                show(done)

    ask_cache(
        (config, state_dir, password_file, nats_url),
        namespace,
        work,
        quiet=as_json,
        limit_seconds=LIMIT_SECONDS,
    )
    if as_json:
        print_json({"removed": keys})
    else:
        errors.print(
            f"nothing is left of {len(keys)} key{'s' * (len(keys) > 1)} in archive and RAM "
            f"of namespace {escape(namespace)}"
        )


@app.command()
def sweep(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove now what has expired or was cleared, in all namespaces."""
    _run_job("sweep", (config, state_dir, password_file, nats_url), as_json=as_json)


@app.command()
def reindex(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="take the store over, whose mark is another installation's"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the index in its bucket anew, from the archived objects alone."""
    where = (config, state_dir, password_file, nats_url)
    _run_job("reindex", where, as_json=as_json, adopt=adopt)


app.command()(dead)


def _run_job(
    name: Literal["sweep", "reindex"], where: Where, *, as_json: bool, adopt: bool = False
) -> None:
    async def work(bus: Bus) -> ArchiveJob:
        with counted(None, name) as show:
            return await ArchiveClient(bus).run(
                name, lambda job: show(job.done, job.total), adopt=adopt
            )

    job = ask_archive(where, work, as_json=as_json, limit_seconds=None)
    if as_json:
        print_json(job)
    elif job.state == "done":
        did = ", ".join(f"{count} {kind}" for kind, count in job.counts.items()) or "nothing to do"
        errors.print(f"{name}: {did}, in {human.duration(job.seconds)}")
        for one, reason in job.put_aside.items():
            errors.print(f"put aside: {escape(one)}: {escape(human.printable(reason))}")
    else:
        errors.print(f"{name} failed: {escape(job.error)}")
    raise SystemExit(0 if job.state == "done" else 1)
