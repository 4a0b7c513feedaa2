"""`resource-agent cache`: what a namespace of the cache does, and how it is configured."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from agent.cli.namespace import ask_cache
from agent.cli.options import AsJson, Config, Namespace, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_fields, print_json
from agent.cli.start import Where, fail
from agent.client import ResourceAgent

R = TypeVar("R", bound=msgspec.Struct)

LIMIT_SECONDS = 60.0

app = typer.Typer(
    name="cache", help="Shows and changes a namespace of the cache.", no_args_is_help=True
)


@app.command()
def status(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    top: Annotated[int, typer.Option(min=0, max=100, help="how many top entries")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show sizes, hits, latencies, the configuration, and the entries read most."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(
        where, namespace, lambda agent: agent.lmcache_status(namespace, top=top), quiet=as_json
    )
    _show(reply, as_json=as_json)


@app.command("config")
def show_config(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show the configuration in force."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, namespace, lambda agent: agent.lmcache_config(namespace), quiet=as_json)
    _show(reply, as_json=as_json)


@app.command()
def configure(
    changes: Annotated[
        list[str], typer.Argument(help="FIELD=VALUE …, like max_size_mb=2048 enable_sharing=false")
    ],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Change the configuration; it takes effect at once and is kept."""
    fields = dict(_field(change) for change in changes)
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(
        where, namespace, lambda agent: agent.configure_lmcache(fields, namespace), quiet=as_json
    )
    _show(reply, as_json=as_json)


@app.command()
def optimize(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Take expired and worthless entries out of RAM."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, namespace, lambda agent: agent.optimize_lmcache(namespace), quiet=as_json)
    _show(reply, as_json=as_json)


@app.command()
def clear(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove everything of a namespace, what is archived included."""
    if not yes:
        typer.confirm(f"Remove everything of namespace {namespace}?", abort=True, err=True)
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, namespace, lambda agent: agent.clear_lmcache(namespace), quiet=as_json)
    _show(reply, as_json=as_json)


def _ask(
    where: Where, namespace: str, work: Callable[[ResourceAgent], Awaitable[R]], *, quiet: bool
) -> R:
    return ask_cache(
        where,
        namespace,
        lambda bus: work(ResourceAgent(bus)),
        quiet=quiet,
        limit_seconds=LIMIT_SECONDS,
    )


def _field(change: str) -> tuple[str, Any]:
    name, separator, value = change.partition("=")
    if not separator:
        fail(ValueError(f"{change!r} is not FIELD=VALUE, like max_size_mb=2048"), code=2)
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def _show(reply: msgspec.Struct, *, as_json: bool) -> None:
    if as_json:
        print_json(reply)
    else:
        print_fields(reply)
