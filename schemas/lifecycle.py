"""Services that come, beat and go, and the state of their parts."""

from typing import ClassVar, Literal

import msgspec

from schemas.message import Message
from schemas.units import Count, Instant, Seconds, Token

Role = Literal["agent", "handlers", "cache", "archive"]
ROLES: tuple[Role, ...] = ("agent", "handlers", "cache", "archive")
ComponentState = Literal["ok", "degraded", "failed", "off"]


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a service as its last live probe saw it; `probed_at` gives its age."""

    name: str
    state: ComponentState
    text: str = ""
    probed_at: Instant


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One running service in the bucket `fleet-registry`, key `<role>.<instance>`.

    `machine` and `identity` tell a restart on the same machine and state folder (takes the name
    over) from another machine with the same name (refused).
    """

    role: Role
    instance: Token
    node: Token
    machine: str
    identity: str
    boot: str
    pid: Count
    version: str
    started_at: Instant
    heartbeat_at: Instant
    heartbeat_seconds: Seconds
    ready: bool
    components: list[Component] = []
    counters: dict[str, float] = {}
    labels: dict[str, str] = {}


class _Lifecycle(Message, frozen=True, kw_only=True):
    PUBLISHER: ClassVar[str] = "every service"

    role: Role
    instance: Token
    observed_at: Instant


class Registered(_Lifecycle, frozen=True, kw_only=True):
    """A service is up and took its name."""

    SUBJECT: ClassVar[str] = "service.registered.{role}.{instance}"

    record: InstanceRecord


class Heartbeat(_Lifecycle, frozen=True, kw_only=True):
    """A service is alive: every 30 s, with real counters, and at once when its state changes."""

    SUBJECT: ClassVar[str] = "service.heartbeat.{role}.{instance}"

    record: InstanceRecord


class Deregistered(_Lifecycle, frozen=True, kw_only=True):
    """A service drained and left."""

    SUBJECT: ClassVar[str] = "service.deregistered.{role}.{instance}"

    reason: str = "stopped"
