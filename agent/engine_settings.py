"""Which engines an agent scrapes: from its settings, or from the bucket `fleet-config`."""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta

from schemas.message import UNDECODABLE

MAX_TARGETS = 64
_SHOWN = 200
_PORTS = {"http": 80, "https": 443}
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f#]")


class EngineTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Prometheus endpoint, and what its engines are called on the bus."""

    url: Annotated[str, Meta(max_length=2048)]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$(?!\n)")] = ""
    pool: Annotated[str, Meta(max_length=256)] = ""
    node: Annotated[str, Meta(max_length=256)] = ""
    requests_running_max: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no address; the text never repeats a password.

        Raises:
            ValueError: the URL cannot be scraped.
        """
        try:
            parts = urlsplit(self.url)
            (parts.hostname or "").encode("idna")
            usable = bool(parts.hostname) and parts.port != 0 and not _NOT_IN_URL.search(self.url)
        except ValueError:
            raise ValueError(f"{self._quoted()} is not a url") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("no user or password in the url: use bearer_file or bearer_variable")
        if not usable or parts.scheme not in _PORTS:
            raise ValueError(
                f"{self._quoted()} must look like http://127.0.0.1:8000/metrics or https://host/path"
            )

    def _quoted(self) -> str:
        """The URL for a message: without user, password and query."""
        return repr(re.sub(r"//[^/]*@", "//…@", self.url.partition("?")[0])[:_SHOWN])

    @property
    def parts(self) -> SplitResult:
        """The URL in parts, with `/metrics` where no path was given."""
        parts = urlsplit(self.url)
        return parts._replace(path=parts.path if parts.path.strip("/") else "/metrics")

    @property
    def address(self) -> str:
        """What is asked for."""
        return self.parts.geturl()

    @property
    def shown(self) -> str:
        """The address for people and logs: a query may hold a secret."""
        return self.parts._replace(query="").geturl()

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: whom a token may be sent to."""
        parts = self.parts
        return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]

    @property
    def label(self) -> str:
        """`name`, or host and port, and a path that is not `/metrics`: `localhost-8000`."""
        if self.name:
            return self.name
        _, host, port = self.origin
        path = self.parts.path.removesuffix("/metrics")
        return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{_local(host)}-{port}{path}")[-64:]


class LocalTarget(EngineTarget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target of the agent's own settings: only these name files and secrets."""

    ca_file: Annotated[str, Meta(max_length=4096)] = ""
    bearer_file: Annotated[str, Meta(max_length=4096)] = ""
    bearer_variable: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$(?!\n)")] = ""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: two tokens, or a CA without TLS.
        """
        super().__post_init__()
        if self.bearer_file and self.bearer_variable:
            raise ValueError("give bearer_file or bearer_variable, not both")
        if self.ca_file and self.parts.scheme != "https":
            raise ValueError("ca_file needs an https url")


class EnginesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engines whose metrics the agent scrapes."""

    targets: Annotated[
        tuple[LocalTarget | str, ...],
        Meta(
            max_length=MAX_TARGETS,
            description="Prometheus endpoints of vLLM, SGLang, LMCache or dcgm-exporter: URLs, or "
            "tables with url, name, pool, node, requests_running_max, ca_file, bearer_file, "
            "bearer_variable (docs/engines.md)",
        ),
    ] = ()
    interval_seconds: Annotated[
        float, Meta(ge=0.1, le=300, description="between two scrapes of one endpoint")
    ] = 5.0
    timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="for one scrape, from the name look-up to the end")
    ] = 4.0
    body_limit_bytes: Annotated[
        int, Meta(ge=1024, le=64 * 1024 * 1024, description="a larger page is refused")
    ] = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse targets that cannot be told apart.

        Raises:
            ValueError: a target that cannot be scraped, or two of one name.
        """
        try:
            self.local_targets()
        except ValueError as error:
            raise ValueError(f"targets: {error}") from None

    def local_targets(self) -> tuple[LocalTarget, ...]:
        """Every target in full."""
        targets = _in_full(self.targets, LocalTarget)
        _check_names(targets)
        return targets


class EnginesUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The value of `agent.engines.<node>` in the bucket: the targets instead of the settings'."""

    targets: Annotated[tuple[EngineTarget | str, ...], Meta(max_length=MAX_TARGETS)]


def updated_targets(settings: EnginesSettings, value: bytes) -> tuple[LocalTarget, ...]:
    """What an agent with `settings` scrapes once `value` is in the bucket.

    Who may write the bucket must not get at the agent's files, nor send its tokens elsewhere: a
    target gets the CA and token of the local target with the same scheme, host and port, if any.

    Raises:
        ValueError: the value is refused; the text says why.
    """
    try:
        update = msgspec.json.decode(value, type=EnginesUpdate)
    except UNDECODABLE as error:
        raise ValueError(str(error)) from None
    trusted = {target.origin: target for target in reversed(settings.local_targets())}
    targets = []
    for target in _in_full(update.targets, EngineTarget):
        local = trusted.get(target.origin)
        targets.append(
            LocalTarget(
                url=target.url,
                name=target.name,
                pool=target.pool,
                node=target.node,
                requests_running_max=target.requests_running_max,
                ca_file=local.ca_file if local else "",
                bearer_file=local.bearer_file if local else "",
                bearer_variable=local.bearer_variable if local else "",
            )
        )
    _check_names(targets)
    return tuple(targets)


T = TypeVar("T", bound=EngineTarget)


def _in_full(targets: Sequence[T | str], kind: type[T]) -> tuple[T, ...]:
    return tuple(kind(url=one) if isinstance(one, str) else one for one in targets)


def _check_names(targets: Sequence[EngineTarget]) -> None:
    twice = [name for name, count in Counter(t.label for t in targets).items() if count > 1]
    if twice:
        raise ValueError(f"two targets are called {twice[0]!r}: give one of them a name")


def _local(host: str) -> str:
    try:
        return "localhost" if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return host
