"""Services that come, beat and go, and the state of their parts."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.message import Message
from schemas.units import Count, Instant, Seconds, Token

Role = Literal["agent", "handlers", "cache", "archive", "executor"]
ROLES: tuple[Role, ...] = ("agent", "handlers", "cache", "archive")
"""What every installation has."""
ALL_ROLES: tuple[Role, ...] = (*ROLES, "executor")
ComponentState = Literal["ok", "degraded", "failed", "off"]


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a service as its last live probe saw it; `probed_at` gives its age."""

    name: Annotated[str, Meta(description="of the part, like `bus`, `gpus`, `store`")]
    state: Annotated[
        ComponentState,
        Meta(description="degraded: works in part; off: not wanted, or nothing there"),
    ]
    text: Annotated[str, Meta(description="why, and what to do; empty: nothing to say")] = ""
    probed_at: Annotated[Instant, Meta(description="when it was looked at, by the service's clock")]


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One running service in the bucket `fleet-registry`, key `<role>.<instance>`.

    `machine` and `identity` tell a restart on the same machine and state folder (takes the name
    over) from another machine with the same name (refused).
    """

    role: Annotated[Role, Meta(description="what it does")]
    instance: Annotated[
        Token, Meta(description="setting or option; else the node: unique in its role")
    ]
    node: Annotated[Token, Meta(description="machine it runs on, as a subject token")]
    machine: Annotated[
        str, Meta(description="host name and a digest of the machine's id, for people")
    ]
    identity: Annotated[str, Meta(description="random, kept in the state folder")]
    boot: Annotated[str, Meta(description="random, new at each start of the process")]
    pid: Annotated[Count, Meta(description="process id, as the process sees it")]
    version: Annotated[str, Meta(description="of resource-agent")]
    started_at: Annotated[
        Instant, Meta(description="when its process started, by the service's clock")
    ]
    heartbeat_at: Annotated[
        Instant, Meta(description="when this record was made, by the service's clock")
    ]
    heartbeat_seconds: Annotated[
        Seconds,
        Meta(description="longest time to the next heartbeat; silent for two counts as failed"),
    ]
    ready: Annotated[
        bool, Meta(description="true: it does its work; false while it starts and drains")
    ]
    components: Annotated[list[Component], Meta(description="its parts, the bus first")] = []
    counters: Annotated[
        dict[str, float],
        Meta(description="totals since its start and sizes now: `docs/operations.md`"),
    ] = {}
    labels: Annotated[
        dict[str, str], Meta(description="setting `labels`, and what a program that starts it adds")
    ] = {}


class _Lifecycle(Message, frozen=True, kw_only=True):
    PUBLISHER: ClassVar[str] = "every service"

    role: Annotated[Role, Meta(description="of the service")]
    instance: Annotated[Token, Meta(description="of the service")]
    observed_at: Annotated[Instant, Meta(description="when it was said, by the service's clock")]


class Registered(_Lifecycle, frozen=True, kw_only=True):
    """A service is up and took its name."""

    SUBJECT: ClassVar[str] = "service.registered.{role}.{instance}"

    record: Annotated[InstanceRecord, Meta(description="the service as it is now")]


class Heartbeat(_Lifecycle, frozen=True, kw_only=True):
    """A service is alive: every 30 s, with real counters, and sooner when something changed.

    At once for the state of a part, within about a second for the words of its text.
    """

    SUBJECT: ClassVar[str] = "service.heartbeat.{role}.{instance}"

    record: Annotated[InstanceRecord, Meta(description="the service as it is now")]


class Deregistered(_Lifecycle, frozen=True, kw_only=True):
    """A service drained and left."""

    SUBJECT: ClassVar[str] = "service.deregistered.{role}.{instance}"

    reason: Annotated[str, Meta(description="why it left, for people")] = "stopped"
