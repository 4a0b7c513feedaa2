"""All settings: defaults, then a TOML file, then the environment, then options; later wins."""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from agent.collectors.filesystems import FilesystemsSettings
from agent.engine_settings import EnginesSettings
from agent.executors.settings import ExecutorSettings
from agent.nats_server.config import ServerSettings
from archive.settings import ArchiveSettings
from cache.settings import CacheSettings
from handlers.insights.settings import InsightsSettings
from handlers.settings import HandlersSettings
from schemas.labels import Labels
from schemas.lifecycle import ROLES, Role
from schemas.units import token, token_or_none

_USER_INFO = re.compile(r"//[^/\s'\"]*@")
PREFIX = "RESOURCE_AGENT_"
# Tables that are one value: names in them may have dots.
_WHOLE = frozenset({"labels"})
CONFIG_VARIABLE = "RESOURCE_AGENT_CONFIG"
SERVER_VARIABLES = frozenset({CONFIG_VARIABLE})


class SettingsError(ValueError):
    """A setting that cannot be used; the text names key, value, source and rule."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings; unknown keys are errors."""


class AgentSettings(Table, frozen=True, kw_only=True):
    """The node agent."""

    interval_seconds: Annotated[
        float, Meta(ge=0.1, le=300, description="between two samples of the host and its GPUs")
    ] = 5.0
    process_interval_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="between two readings of the process table")
    ] = 30.0
    process_limit: Annotated[
        int, Meta(ge=0, le=1000, description="processes published, busiest first")
    ] = 10
    gpu_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="a driver call that takes longer counts as failed")
    ] = 5.0
    gpu_rescan_seconds: Annotated[
        float,
        Meta(ge=1, le=3600, description="between two looks for GPUs that came or went"),
    ] = 60.0
    host_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="a sample of the host that takes longer is missed")
    ] = 10.0
    host_root: Annotated[
        str,
        Meta(
            pattern="^/",
            description="folder that has the host's /, with its /proc and /sys: for instance /host "
            "in a container that has it mounted there (read-only, rslave)",
        ),
    ] = "/"
    filesystems: Annotated[FilesystemsSettings, Meta(description="file systems")] = (
        FilesystemsSettings()
    )
    engines: Annotated[EnginesSettings, Meta(description="engines to scrape")] = EnginesSettings()


class HealthTable(Table, frozen=True, kw_only=True):
    """Registration and health."""

    heartbeat_seconds: Annotated[
        float, Meta(gt=0, le=30, description="between two heartbeats; two missing = failed")
    ] = 30.0
    probe_seconds: Annotated[
        float, Meta(gt=0, le=30, description="between two probes of a service's own parts")
    ] = 5.0
    expected_roles: Annotated[
        tuple[Role, ...], Meta(description="the installation is ready when these are")
    ] = ROLES


class NatsSettings(Table, frozen=True, kw_only=True):
    """How to log in to a NATS server of your own."""

    password_file: Annotated[
        str,
        Meta(
            description="file with the password, where the server's address has a user without "
            "one (nats://user@host:4222); empty: such a name is a token"
        ),
    ] = ""


class StreamsSettings(Table, frozen=True, kw_only=True):
    """The streams on the server."""

    budget_bytes: Annotated[
        Annotated[int, Meta(ge=64 * 1024 * 1024)] | None,
        Meta(description="all streams together; null: what the server offers"),
    ] = None


class LogSettings(Table, frozen=True, kw_only=True):
    """Logs, on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe level shown")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"], Meta(description="auto: text on a terminal, else JSON")
    ] = "auto"


class Settings(Table, frozen=True, kw_only=True):
    """Everything that can be set."""

    root: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$",
            description="root of all subjects; streams and buckets are named after it",
        ),
    ] = "fleet.v1"
    state_dir: Annotated[
        str, Meta(description="folder for everything kept; empty: under $XDG_STATE_HOME")
    ] = ""
    node: Annotated[str, Meta(description="name of this machine; empty: its host name")] = ""
    pool: Annotated[str, Meta(description="pool of this machine's GPUs; empty: none")] = ""
    labels: Annotated[
        dict[str, str],
        Meta(
            description="of this machine, as Kubernetes has them: in its metrics and its record, "
            "and what prices may go by"
        ),
    ] = {}
    agent: Annotated[AgentSettings, Meta(description="node agent")] = AgentSettings()
    health: Annotated[HealthTable, Meta(description="health")] = HealthTable()
    server: Annotated[ServerSettings, Meta(description="private nats-server")] = ServerSettings()
    nats: Annotated[NatsSettings, Meta(description="your own NATS server")] = NatsSettings()
    streams: Annotated[StreamsSettings, Meta(description="streams")] = StreamsSettings()
    handlers: Annotated[HandlersSettings, Meta(description="handlers")] = HandlersSettings()
    insights: Annotated[InsightsSettings, Meta(description="insights")] = InsightsSettings()
    cache: Annotated[CacheSettings, Meta(description="cache")] = CacheSettings()
    archive: Annotated[ArchiveSettings, Meta(description="archive")] = ArchiveSettings()
    executor: Annotated[ExecutorSettings, Meta(description="carries advice out")] = (
        ExecutorSettings()
    )
    log: Annotated[LogSettings, Meta(description="logs")] = LogSettings()

    def __post_init__(self) -> None:
        """Refuse labels that nothing else could have.

        Raises:
            ValueError: the text names the label.
        """
        try:
            msgspec.convert(self.labels, Labels)
        except msgspec.ValidationError:
            raise ValueError(
                "labels must be as Kubernetes has them: names of 1 to 128 of A-Z a-z 0-9 . _ / -, "
                "first and last a letter or digit; values of up to 63 of A-Z a-z 0-9 . _ -; at "
                "most 32 labels"
            ) from None

    def state_folder(self) -> Path:
        """The state folder as an absolute path."""
        if self.state_dir:
            return Path(self.state_dir).expanduser().absolute()
        base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(base).expanduser() / "resource-agent"

    def archive_folder(self) -> Path:
        """Where the archive keeps its objects, unless in S3."""
        folder = self.archive.folder
        return Path(folder).expanduser() if folder else self.state_folder() / "archive"

    def node_token(self) -> str:
        """This machine's name as a subject token."""
        return token(self.node_name())

    def node_name(self) -> str:
        """This machine's name as given."""
        return self.node or os.uname().nodename or "node"

    def pool_token(self) -> str | None:
        """The pool as a subject token, or None."""
        return token_or_none(self.pool)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and, by dotted name, where each that is not a default came from."""

    settings: Settings
    sources: dict[str, str]


def load(
    *,
    environ: Mapping[str, str],
    config: Path | None = None,
    options: Mapping[str, tuple[str, Any]] | None = None,
) -> Loaded:
    """Read all sources.

    Args:
        environ: The environment.
        config: The TOML file; without one, `RESOURCE_AGENT_CONFIG` may name it.
        options: Dotted name → (option as typed, value).

    Raises:
        SettingsError: a file that cannot be read, an unknown key, a value out of its range.
    """
    # Defaults first, so that one half of a pair (warning, critical) can be set alone.
    tree: dict[str, Any] = msgspec.to_builtins(Settings())
    sources: dict[str, str] = {}
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    if config is not None:
        _merge_file(tree, sources, config)
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX) and name not in SERVER_VARIABLES:
            dotted = name.removeprefix(PREFIX).lower().replace("__", ".")
            value: object = text
            if dotted in _OF_TYPE["list"]:
                value = _parse_list(text)
            elif dotted in _OF_TYPE["table"]:
                value = _parse_json(text)
            _put(tree, sources, dotted, value, f"environment {name}")
    for dotted, (option, value) in (options or {}).items():
        _put(tree, sources, dotted, value, f"option {option}")
    try:
        settings = msgspec.convert(tree, type=Settings, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(_explain(str(error), sources, tree)) from None
    for dotted, number in _numbers(msgspec.to_builtins(settings)):
        if not math.isfinite(number):
            text = f"Expected a finite number - at `$.{dotted}`"
            raise SettingsError(_explain(text, sources, tree))
    return Loaded(settings=settings, sources=sources)


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Each number in a tree, with its dotted name; of what is in a list that of the list."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one, name)


def _merge_file(tree: dict[str, Any], sources: dict[str, str], path: Path) -> None:
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} is not TOML: {error}") from error
    for dotted, value in _leaves(table):
        _put(tree, sources, dotted, value, f"file {path}")


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in _WHOLE:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(
    tree: dict[str, Any], sources: dict[str, str], dotted: str, value: object, source: str
) -> None:
    *tables, key = dotted.split(".")
    for depth, table in enumerate(tables, 1):
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            above = ".".join(tables[:depth])
            raise SettingsError(
                f"setting {dotted} = {value!r} ({source}): {above} is not a table, "
                f"but {tree!r} ({sources.get(above, 'defaults')})"
            )
    tree[key] = value
    sources[dotted] = source


def _parse_list(text: str) -> object:
    """A JSON list, or names separated by commas."""
    if text.startswith("["):
        return _parse_json(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse_json(text: str) -> object:
    """What `text` says in JSON, else itself: its type is refused by name then."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _explain(text: str, sources: Mapping[str, str], tree: Mapping[str, Any]) -> str:
    """The validator's words, with the key, its value and where that came from."""
    message, _, where = text.partition(" - at `$.")
    dotted = _name_in_table(where.rstrip("`"), sources).split("[")[0]
    if "unknown field" in message and "`" in message:
        field = message.split("`")[-2]
        dotted = f"{dotted}.{field}".lstrip(".")
        message = "there is no such setting"
    value: Any = tree
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    # A rule over several settings is told of their table; its text names them, the wrong one first.
    names = (dotted, *(name for word in message.split() for name in (f"{dotted}.{word}", word)))
    named = next((name for name in names if name in sources), "")
    source = sources.get(named)
    if source is None:
        source = next((s for name, s in sources.items() if name.startswith(dotted)), "defaults")
    shown = "" if value is None or isinstance(value, Mapping) else f" = {value!r}"
    shown = _USER_INFO.sub("//…@", shown)
    name = dotted or named or "?"
    return f"setting {name}{shown} ({source}): {message}; see `resource-agent settings`"


def _name_in_table(where: str, sources: Mapping[str, str]) -> str:
    """`cache.namespace[...].x` with the key that is meant, where only one can be."""
    named = re.compile(re.escape(where).replace(r"\[\.\.\.\]", r"\.[^.]+"))
    found = [name for name in sources if named.fullmatch(name)]
    return found[0] if len(found) == 1 else where.replace("[...].", ".*.")


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, for the list and the docs."""

    name: str
    variable: str
    type: str
    limits: str
    default: Any
    value: Any
    source: str
    description: str


def describe(loaded: Loaded) -> list[Option]:
    """Every setting with its value and where it came from, in the order of the classes."""
    return list(_describe(Settings, loaded.settings, Settings(), "", loaded.sources))


def _describe(
    kind: type[msgspec.Struct],
    value: msgspec.Struct,
    default: msgspec.Struct,
    prefix: str,
    sources: Mapping[str, str],
) -> Iterator[Option]:
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        dotted = f"{prefix}{field.name}"
        inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from _describe(
                inner,
                getattr(value, field.name),
                getattr(default, field.name),
                f"{dotted}.",
                sources,
            )
            continue
        meta = [m for m in get_args(hint)[1:] if isinstance(m, Meta)]
        yield Option(
            name=dotted,
            variable=PREFIX + dotted.upper().replace(".", "__"),
            type=_type_name(inner),
            limits=", ".join(_limits(meta)),
            default=msgspec.to_builtins(getattr(default, field.name)),
            value=msgspec.to_builtins(getattr(value, field.name)),
            source=sources.get(dotted, "default"),
            description="; ".join(m.description for m in meta if m.description),
        )


def _limits(meta: Sequence[Meta]) -> Iterator[str]:
    for one in meta:
        for word, bound in (
            ("at least", one.ge),
            ("above", one.gt),
            ("at most", one.le),
            ("below", one.lt),
        ):
            if bound is not None:
                yield f"{word} {bound:.15g}"


def _type_name(kind: Any) -> str:  # noqa: ANN401 - any annotation
    if get_origin(kind) is dict:
        return "table"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if get_args(kind):
        return " | ".join("null" if a is type(None) else _type_name(a) for a in get_args(kind))
    return getattr(kind, "__name__", str(kind))


_OF_TYPE = {
    kind: frozenset(
        option.name
        for option in describe(Loaded(settings=Settings(), sources={}))
        if option.type == kind
    )
    for kind in ("list", "table")
}
