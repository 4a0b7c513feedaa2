"""Who may publish and hear what on the bus: every user of a private or a deployed nats-server."""

import dataclasses
from collections.abc import Iterable, Mapping

from agent.bus.names import Names
from agent.bus.streams import BUCKETS, STREAMS
from schemas.lifecycle import ALL_ROLES, Role
from schemas.views import GPU_VIEWS, SYSTEM_VIEWS

HARMLESS_REQUESTS = (
    "api.health.>",
    "api.gpu.>",
    "api.engine.>",
    "api.cache.history",
    "api.system.>",
    "api.analysis.>",
    "api.alert.list",
    "api.alert.history",
    "api.alert.rules",
    "api.alert.silences",
    "cache.default.get",
    "cache.default.put",
    "cache.default.put.*",
    "cache.default.range.*",
    "cache.default.match",
    "cache.default.mget",
    "cache.default.mput",
    "cache.default.exists",
    "cache.default.meta",
    "cache.default.stats",
    "cache.default.touched",
)
EVENTS_FOR_ALL = (
    "metrics.>",
    "rollup.>",
    "alert.>",
    "insight.>",
    "analysis.>",
    "forecast.>",
    "recommendation.>",
    "decision.>",
    "execution.>",
    "service.>",
    "cache_event.>",
    "archived.>",
)
NOT_FOR_ALL = ("api.>", "cache.>", "dead.>", "evicted.>", "evicted_part.>")
"""Requests, and what carries users' cached values."""
DENIES_RELIABLY_SINCE = (2, 14, 5)
"""nats-servers before 2.11.17 and 2.12.15 let a subscription like `fleet.v1.*.default` past a list
of what is denied, and before 2.14.0 a queue group could get past one (advisory 2026-18)."""

DECISIONS = ("decision.accepted.>", "decision.rejected.>")
PUBLISHED_BY: Mapping[Role, tuple[str, ...]] = {
    "agent": ("metrics.host.>", "metrics.gpu.>", "metrics.engine.>", "metrics.cache.>"),
    "handlers": (
        "metrics.stream.>",
        "rollup.>",
        "analysis.>",
        "forecast.>",
        "alert.>",
        "insight.>",
        "recommendation.>",
        "decision.superseded.>",
        "decision.expired.>",
        "execution.requested.>",
    ),
    "cache": ("metrics.cache.>", "cache_event.>", "evicted.>", "evicted_part.>"),
    "archive": ("metrics.archive.>", "archived.>", "evicted.*"),
    "executor": (
        *DECISIONS,
        "execution.>",
        "recommendation.scale_up.>",  # to go back after a failure
        "recommendation.scale_down.>",
    ),
}
SERVED_BY: Mapping[Role, tuple[str, ...]] = {
    "agent": (
        *(f"api.gpu.{view}.*" for view in GPU_VIEWS),
        *(f"api.system.{view}.*" for view in SYSTEM_VIEWS),
    ),
    "handlers": (
        "api.gpu.*",
        "api.gpu.history.*",
        "api.engine.*",
        "api.engine.history.*",
        "api.cache.history",
        "api.system.*",
        "api.system.history.*",
        "api.alert.*",
        "api.analysis.*",
        "api.optimize.*",
    ),
    "cache": ("api.lmcache.>", "cache.>"),
    "archive": ("api.archive.>",),
    "executor": (),
}
HEARD_BY: Mapping[Role, tuple[str, ...]] = {"cache": ("metrics.archive.*",)}
"""Events as they are said, not read from their stream."""
STREAMS_READ_BY: Mapping[Role, tuple[str, ...]] = {
    "agent": (),
    "handlers": ("METRICS", "ROLLUPS", "EVENTS", "ALERTS", "RECOMMENDATIONS"),
    "cache": ("EVENTS",),
    "archive": ("DEAD",),
    "executor": ("RECOMMENDATIONS",),
}
BUCKETS_FOLLOWED = ("registry", "config")
"""Every service hears who is there and what is to be done; all read the whole of a bucket."""
BUCKETS_OF: Mapping[Role, tuple[str, ...]] = {
    "agent": ("registry",),
    "handlers": ("registry", "lease", "state", "config"),
    "cache": ("registry", "lease", "state", "config"),
    "archive": ("registry", "lease", "state", "archive"),
    "executor": ("registry", "lease"),
}
"""Where a role writes the keys that begin with its name."""
MAKES_STREAMS: Role = "handlers"


@dataclasses.dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that a user may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never_heard: tuple[str, ...] = ()
    may_join_queues: bool = True


def guest_rights(names: Names, version: tuple[int, int, int]) -> Rights:
    """Without a password on a private server: reads events, asks harmless endpoints.

    A server that denies reliably lets the guest subscribe to the whole root and leaves out what
    is not for all; an older one grants the events kind by kind.

    Nothing of `$JS.API`: the server sends its answers to whatever reply subject the asker names,
    streams and buckets included.
    """
    rights = _reader(names, "_INBOX.>")
    if version < DENIES_RELIABLY_SINCE:
        return rights
    return dataclasses.replace(
        rights,
        subscribe=(f"{names.root}.>", "_INBOX.>"),
        never_heard=tuple(map(names.absolute, NOT_FOR_ALL)),
    )


def deployed_rights(names: Names) -> dict[str, Rights]:
    """The users of `deploy/nats.conf`: one for each role, and three for people and programs."""
    advice = names.stream("RECOMMENDATIONS")
    rights = {
        "observer": _reader(names, inbox("observer")),
        "orchestrator": _reader(
            names,
            inbox("orchestrator"),
            names.absolute("api.optimize.>"),
            *map(names.absolute, (*DECISIONS, "execution.>")),
            "$JS.API.STREAM.NAMES",
            f"$JS.API.STREAM.INFO.{advice}",
            *_consume(advice, "*"),
        ),
        "operator": Rights(
            publish=(
                *map(names.absolute, ("api.>", "cache.>", *DECISIONS)),
                f"$KV.{names.bucket('config')}.>",
                "$SRV.>",
                "$JS.API.>",
                "$JS.ACK.>",
                "$JS.FC.>",
            ),
            subscribe=(f"{names.root}.>", "$SRV.>", "$JS.EVENT.>", inbox("operator")),
        ),
    }
    inboxes = ("_INBOX.>", *map(inbox, (*ALL_ROLES, *rights)))
    return {**{role: _service(names, role, inboxes) for role in ALL_ROLES}, **rights}


def inbox(user: str) -> str:
    """Where this user's answers arrive; nobody else may listen there."""
    return f"_INBOX_{user}.>"


def _reader(names: Names, answers: str, *more: str) -> Rights:
    """Read events, ask what is harmless, take no request away by joining a queue group."""
    return Rights(
        publish=(*map(names.absolute, HARMLESS_REQUESTS), "$SRV.>", *more),
        subscribe=(*map(names.absolute, EVENTS_FOR_ALL), answers),
        may_join_queues=False,
    )


def _service(names: Names, role: Role, inboxes: Iterable[str]) -> Rights:
    streams = [names.stream(spec.name) for spec in STREAMS]
    streams += [f"KV_{names.bucket(spec.name)}" for spec in BUCKETS]
    publish = [
        *(names.absolute(f"service.*.{role}.*"), names.absolute("api.health.>")),
        *map(names.absolute, PUBLISHED_BY[role]),
        *inboxes,  # answers
        "$JS.API.INFO",
        *(f"$JS.API.STREAM.INFO.{stream}" for stream in streams),
    ]
    for bucket in dict.fromkeys((*BUCKETS_FOLLOWED, *BUCKETS_OF[role])):
        publish.append(f"$JS.API.STREAM.MSG.GET.KV_{names.bucket(bucket)}")
    for bucket in BUCKETS_FOLLOWED:
        publish += _follow(f"KV_{names.bucket(bucket)}")
    for bucket in BUCKETS_OF[role]:
        own = f"$KV.{names.bucket(bucket)}.{role}"
        publish += [own, f"{own}.>"]
    for stream in STREAMS_READ_BY[role]:
        publish += _follow(names.stream(stream))
    if role == MAKES_STREAMS:
        publish += [f"$JS.API.STREAM.CREATE.{stream}" for stream in streams]
    if role == "cache":
        asked = (
            *("api.archive.restore.*", "api.archive.range.*.*", "api.archive.keys.*"),
            "api.lmcache.*.*",
        )
        publish += map(names.absolute, asked)
    if role == "archive":
        evictions = names.stream("EVICTIONS")
        publish += [
            *_consume(evictions, "archiver"),
            f"$JS.API.CONSUMER.DELETE.{evictions}.archiver",  # to make it anew
            f"$JS.API.STREAM.MSG.GET.{evictions}",  # what of it waits
            names.absolute(f"dead.{evictions}.archiver"),
        ]
        parts = names.stream("EVICTION_PARTS")
        publish += [f"$JS.API.DIRECT.GET.{parts}.>", f"$JS.API.STREAM.PURGE.{parts}"]
        index = f"KV_{names.bucket('archive')}"
        publish += [*_follow(index), f"$JS.API.STREAM.PURGE.{index}"]
        publish.append(f"$JS.API.STREAM.CREATE.{index}")  # `reindex` makes it anew
        publish.append(f"$JS.API.STREAM.MSG.DELETE.{names.stream('DEAD')}")
        of_archive = ("api.archive.admit", "api.archive.commit", "cache.*.lent.*")
        publish += map(names.absolute, of_archive)
    name = f"fleet-{role}"
    heard = map(names.absolute, HEARD_BY.get(role, ()))
    subscribe = (
        *heard,
        *map(names.absolute, SERVED_BY[role]),
        *(names.absolute("api.health.*"), names.absolute(f"api.health.*.{role}.*")),
        *("$SRV.*", f"$SRV.*.{name}", f"$SRV.*.{name}.*"),
        inbox(role),
    )
    return Rights(tuple(publish), subscribe)


def _follow(stream: str) -> Iterable[str]:
    """Read a stream in order by consumers of one's own, which only their makers know."""
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
        *_with_domain("FC", f"{stream}.>"),
    )


def _consume(stream: str, consumer: str) -> Iterable[str]:
    """Work a durable consumer: make it, with a filter too, pull, acknowledge."""
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}",
        f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{consumer}",
        f"$JS.API.CONSUMER.INFO.{stream}.{consumer}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        *_with_domain("ACK", f"{stream}.{consumer}.>"),
    )


def _with_domain(kind: str, rest: str) -> Iterable[str]:
    """Since nats-server 2.15 the domain and the account stand in front of the stream (ADR-15)."""
    return (f"$JS.{kind}.{rest}", f"$JS.{kind}.*.*.{rest}")
