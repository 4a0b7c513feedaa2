"""Every word spoken on the bus: events and endpoints, for `subjects`, the docs and AsyncAPI."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from schemas import (
    analysis,
    archive,
    archive_money,
    cache,
    consolidation,
    engines,
    insights,
    lifecycle,
    metrics,
    scaling,
    spending,
    streams,
)
from schemas.alert_api import (
    AlertFilter,
    AlertHistoryReply,
    AlertHistoryRequest,
    AlertsReply,
    RuleName,
    RulesReply,
    SetRule,
    SilenceId,
    SilenceRequest,
    SilencesReply,
    SilenceState,
)
from schemas.api import (
    ArchiveDead,
    ArchiveDeadChoice,
    ArchiveDeadRequest,
    ArchiveJob,
    ArchiveJobRequest,
    ArchiveList,
    ArchiveListRequest,
    ArchiveStatus,
    CacheReply,
    ClearReply,
    DeadLetter,
    EntryMeta,
    Filter,
    HealthReply,
    HistoryReply,
    HistoryRequest,
    KeysReply,
    KeysRequest,
    LatestReply,
    MatchReply,
    NamespaceStats,
    Nothing,
    RecommendationsReply,
    Touched,
    TouchedReply,
    UtilizationReply,
    WarmReply,
    WarmRequest,
)
from schemas.consolidation import ConsolidationsReply
from schemas.decisions import ExecuteReply, ExecuteRequest, ExplainRequest, Explanation
from schemas.history import (
    AdviceHistoryReply,
    AdviceHistoryRequest,
    AnalysisHistoryReply,
    AnalysisHistoryRequest,
    CacheHistoryReply,
    CacheHistoryRequest,
)
from schemas.insights import InsightsReply, InsightsRequest
from schemas.lmcache import (
    LmcacheConfig,
    LmcacheConfigure,
    LmcacheMetrics,
    LmcacheRequest,
    LmcacheStatus,
    LmcacheStatusRequest,
    OptimizeReply,
)
from schemas.message import Message
from schemas.report import OpportunitiesReply, Report, ReportRequest, TrendsReply, WasteReply
from schemas.run import RunReply, RunRequest, RunStep
from schemas.views import GPU_VIEWS, SYSTEM_VIEWS

EVENTS: tuple[type[Message], ...] = (
    metrics.HostMetrics,
    metrics.GpuMetrics,
    engines.EngineMetrics,
    engines.CacheMetrics,
    archive_money.ArchiveMetrics,
    streams.StreamMetrics,
    metrics.Rollup,
    spending.Usage,
    archive_money.ArchiveUsage,
    analysis.Utilization,
    spending.Waste,
    spending.Trend,
    spending.Opportunity,
    archive_money.ArchiveSpending,
    consolidation.Consolidation,
    RunStep,
    analysis.Alert,
    insights.Insight,
    scaling.Forecast,
    scaling.Recommendation,
    scaling.HeldAdvice,
    scaling.Decision,
    scaling.Execution,
    lifecycle.Registered,
    lifecycle.Heartbeat,
    lifecycle.Deregistered,
    cache.CacheEvent,
    cache.Warming,
    archive.Stored,
    archive.Restored,
    archive.Expired,
    archive.ArchiveFailed,
)


@dataclasses.dataclass(frozen=True, slots=True)
class RawEvent:
    """An event whose payload is bytes, with headers."""

    name: str
    subject: str
    publisher: str
    stream: str
    text: str


RAW_EVENTS = (
    RawEvent(
        "Evicted",
        "evicted.{namespace}",
        "cache, and archive (dead letters sent back)",
        "EVICTIONS",
        "A cache entry on its way to the archive: payload = value, header `Fleet-Evicted` = "
        "percent-encoded JSON of Evicted.",
    ),
    RawEvent(
        "EvictedPart",
        "evicted_part.{namespace}.{eviction}.{part}",
        "cache",
        "EVICTION_PARTS",
        "512 KiB of a large entry on its way to the archive; its manifest follows.",
    ),
    RawEvent(
        "Dead",
        "dead.{stream}.{consumer}",
        "every service",
        "DEAD",
        "A message that could not be handled, as it came; headers say from where and why.",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One request subject below the root; `request` and `reply` None = raw bytes and headers."""

    subject: str
    served_by: str
    text: str
    request: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | None = None


_Operation = tuple[str, str, type[msgspec.Struct] | None, type[msgspec.Struct] | None]
HEALTH = ("root", "basic", "detailed", "ready", "live")


def _history(group: str) -> Iterator[EndpointSpec]:
    for tokens, text in (("", "values of a time range"), (".{node}", "the same for one node")):
        yield EndpointSpec(
            f"api.{group}.history{tokens}", "handlers", text, HistoryRequest, HistoryReply
        )


def endpoints() -> Iterator[EndpointSpec]:
    """Every endpoint of an installation, in the order of the documentation."""
    for name in HEALTH:
        yield EndpointSpec(
            f"api.health.{name}",
            "every service (queue group `health`)",
            "health of the whole installation",
            Nothing,
            HealthReply,
        )
    yield EndpointSpec(
        "api.health.{name}.{role}.{instance}",
        "that service",
        "health of one service, from its own probes",
        Nothing,
        HealthReply,
    )
    for group, names in (("gpu", GPU_VIEWS), ("system", SYSTEM_VIEWS)):
        for name in names:
            yield EndpointSpec(
                f"api.{group}.{name}",
                "handlers",
                "latest values of all nodes, each with its age",
                Filter,
                LatestReply,
            )
        yield from _history(group)
        yield EndpointSpec(
            f"api.{group}.{{name}}.{{node}}",
            "that node's agent",
            "fresh values, at most a second old",
            Nothing,
            LatestReply,
        )
    yield from _history("engine")
    yield EndpointSpec(
        "api.cache.history",
        "handlers",
        "what caches did in a time range, ours and LMCaches",
        CacheHistoryRequest,
        CacheHistoryReply,
    )
    yield EndpointSpec(
        "api.analysis.utilization",
        "handlers",
        "latest utilization of nodes, pools, fleet",
        Filter,
        UtilizationReply,
    )
    yield EndpointSpec(
        "api.analysis.run",
        "handlers",
        "all of it at once, explained, with the advice that stands; each step told",
        RunRequest,
        RunReply,
    )
    yield EndpointSpec(
        "api.analysis.insights",
        "handlers",
        "what is going on, in words: the last ones, or one written now",
        InsightsRequest,
        InsightsReply,
    )
    for name, text, reply in (
        ("waste", "what nodes, pools and the fleet cost and waste", WasteReply),
        ("trends", "where pools, the fleet or one node go", TrendsReply),
        ("opportunities", "what can be saved, the best first", OpportunitiesReply),
    ):
        yield EndpointSpec(f"api.analysis.{name}", "handlers", text, Filter, reply)
    yield EndpointSpec(
        "api.analysis.history",
        "handlers",
        "utilization, waste, trends, opportunities or plans of a time range",
        AnalysisHistoryRequest,
        AnalysisHistoryReply,
    )
    yield EndpointSpec(
        "api.analysis.report",
        "handlers",
        "a period in money, from its recorded hours",
        ReportRequest,
        Report,
    )
    yield EndpointSpec(
        "api.optimize.recommendations",
        "handlers",
        "recommendations that stand",
        Filter,
        RecommendationsReply,
    )
    yield EndpointSpec(
        "api.optimize.history",
        "handlers",
        "what was advised in a time range, and what became of it",
        AdviceHistoryRequest,
        AdviceHistoryReply,
    )
    yield EndpointSpec(
        "api.optimize.execute",
        "handlers",
        "has accepted advice carried out; the same idempotency key again: how far that is",
        ExecuteRequest,
        ExecuteReply,
    )
    yield EndpointSpec(
        "api.optimize.explain",
        "handlers",
        "one recommendation, from the messages behind it to what became of it",
        ExplainRequest,
        Explanation,
    )
    yield EndpointSpec(
        "api.optimize.consolidate",
        "handlers",
        "how each pool could do with fewer nodes: ordered moves, each with its saving",
        Filter,
        ConsolidationsReply,
    )
    for name, what in (("scale_up", "more"), ("scale_down", "fewer")):
        yield EndpointSpec(
            f"api.optimize.{name}",
            "handlers",
            f"of the recommendations that stand those for {what} replicas",
            Filter,
            RecommendationsReply,
        )
    yield from _of_alerts()
    yield from _of_cache()
    yield from _of_archive()


def _of_alerts() -> Iterator[EndpointSpec]:
    operations: tuple[_Operation, ...] = (
        ("list", "open alerts, silenced ones apart", AlertFilter, AlertsReply),
        ("history", "what happened in a time range", AlertHistoryRequest, AlertHistoryReply),
        ("rules", "all rules, and what is wrong in `fleet-config`", Nothing, RulesReply),
        ("set_rule", "adds a rule, or changes the fields given of one", SetRule, RulesReply),
        ("delete_rule", "removes a rule; its alerts are cleared", RuleName, RulesReply),
        ("reset_rule", "back to the settings' rule of that name", RuleName, RulesReply),
        ("silences", "all silences, those of the last day included", Nothing, SilencesReply),
        ("silence", "begins a silence", SilenceRequest, SilenceState),
        ("unsilence", "takes one back", SilenceId, SilencesReply),
    )
    for operation, text, request, reply in operations:
        yield EndpointSpec(f"api.alert.{operation}", "handlers", text, request, reply)


def _of_cache() -> Iterator[EndpointSpec]:
    operations: tuple[_Operation, ...] = (
        ("get", "payload = key; the value, or `Fleet-Status: miss`", None, None),
        (
            "range.{instance}",
            "payload = key, `Fleet-Version`, `Fleet-Range: first-last`; those bytes",
            None,
            None,
        ),
        (
            "lent.{instance}",
            "for the archive: `Fleet-Range: first-last` of the lent `Fleet-Eviction`; without one, "
            "that it can be asked",
            None,
            None,
        ),
        (
            "put",
            "`Fleet-Key`, payload = value; `Fleet-Version`; a large one begins with `Fleet-Size` "
            "and no payload, and may be given up by its `Fleet-Upload` and `Fleet-Abort: 1`",
            None,
            None,
        ),
        (
            "put.{instance}",
            "`Fleet-Upload`, `Fleet-Part`, payload = that part; the last one: `Fleet-Version`; "
            "`Fleet-Abort: 1` instead of a part: forgets the upload",
            None,
            None,
        ),
        ("delete", 'payload = key, or `{"tag": …}` (replies TagReply)', None, CacheReply),
        ("exists", "payload = key", None, CacheReply),
        ("meta", "payload = key", None, EntryMeta),
        ("match", "payload = JSON list of keys, root first", None, MatchReply),
        ("mget", "payload = JSON list of keys; a line of sizes, then the values", None, None),
        ("mput", "a line of a JSON list of BatchEntry, then the values", None, None),
        ("keys", "keys in RAM, paged", KeysRequest, KeysReply),
        ("warm", "keys to bring back from the archive", WarmRequest, WarmReply),
        ("stats", "counters and sizes", Nothing, NamespaceStats),
        ("touched", "reads of values kept open as files", Touched, TouchedReply),
        ("clear", "removes everything, archive included", Nothing, ClearReply),
        ("config", "changes the configuration; empty: shows it", LmcacheConfigure, LmcacheConfig),
        ("optimize", "takes expired and worthless entries out", LmcacheRequest, OptimizeReply),
    )
    for operation, text, request, reply in operations:
        yield EndpointSpec(f"cache.{{namespace}}.{operation}", "cache", text, request, reply)
    operations = (
        ("status", "metrics, configuration, top entries", LmcacheStatusRequest, LmcacheStatus),
        ("metrics", "sizes, hits, tokens, latencies", LmcacheRequest, LmcacheMetrics),
        ("config", "the configuration in force", LmcacheRequest, LmcacheConfig),
        ("configure", "changes it: the fields given", LmcacheConfigure, LmcacheConfig),
        ("optimize", "takes expired and worthless entries out", LmcacheRequest, OptimizeReply),
        ("clear", "removes everything, archive included", LmcacheRequest, ClearReply),
    )
    for operation, text, request, reply in operations:
        subject = f"api.lmcache.{operation}"
        yield EndpointSpec(subject, "cache", text, request, reply)
        of_one = f"{subject}.{{namespace}}"
        yield EndpointSpec(of_one, "cache", f"{text}; of one namespace", request, reply)


def _of_archive() -> Iterator[EndpointSpec]:
    operations: tuple[_Operation, ...] = (
        (
            "restore",
            "payload = key; the archived value with `Fleet-Evicted`. A large one is held for "
            "ranges, with `Fleet-First-Part: 1` but for the first; or it is written into "
            "a cache's empty `Fleet-File` on this host if it has no more than `Fleet-Room` bytes "
            "(`Fleet-Written: 1`: verified)",
            None,
            None,
        ),
        (
            "keys",
            "8-byte digests of all archived keys, paged; how far evictions are worked off; whether "
            "a cache's `Fleet-File` can be read on this host (`Fleet-Here: 1`), or `Fleet-Lender` "
            "be asked for parts (`Fleet-Asks: 1`), so that its like may be lent",
            None,
            None,
        ),
        ("list", "archived entries", ArchiveListRequest, ArchiveList),
        ("status", "what is stored, what waits", Nothing, ArchiveStatus),
        ("dead", "evictions that could not be taken", ArchiveDeadRequest, ArchiveDead),
        ("dead_retry", "sends one back", ArchiveDeadChoice, DeadLetter),
        ("dead_drop", "removes one, and its parts", ArchiveDeadChoice, DeadLetter),
    )
    for operation, text, request, reply in operations:
        yield EndpointSpec(
            f"api.archive.{operation}.{{namespace}}", "archive", text, request, reply
        )
    jobs = (
        ("sweep", "removes what expired or was cleared, now; or how far that is"),
        ("reindex", "writes the index anew from the objects alone; or how far that is"),
    )
    yield EndpointSpec(
        "api.archive.dead",
        "archive",
        "evictions that could not be taken, of all namespaces",
        ArchiveDeadRequest,
        ArchiveDead,
    )
    for job, text in jobs:
        yield EndpointSpec(f"api.archive.{job}", "archive", text, ArchiveJobRequest, ArchiveJob)
    between = (
        ("admit", "between archivers: what is to be done with evictions; MessagePack"),
        ("commit", "between archivers: payload = footer of `Fleet-Segment`, which is stored"),
    )
    for operation, text in between:
        yield EndpointSpec(f"api.archive.{operation}", "archive", text)
    yield EndpointSpec(
        "api.archive.range.{namespace}.{instance}",
        "archive",
        "payload = key, `Fleet-Version`, `Fleet-Range: first-last`; bytes of a large value, "
        "written into a cache's `Fleet-File` where that is on this host (`Fleet-Written: 1`)",
    )


def first_line(kind: type) -> str:
    """The first sentence of a class docstring."""
    return (inspect.getdoc(kind) or "").split("\n", 1)[0]


def rows() -> list[dict[str, Any]]:
    """Events and endpoints as plain rows."""
    events = [
        {
            "subject": kind.SUBJECT,
            "kind": "event",
            "message": kind.__name__,
            "who": kind.PUBLISHER,
            "kept_in": f"FLEET_{kind.STREAM}" if kind.STREAM else None,
            "text": first_line(kind),
        }
        for kind in EVENTS
    ]
    events += [
        {
            "subject": raw.subject,
            "kind": "event",
            "message": f"raw: {raw.name}",
            "who": raw.publisher,
            "kept_in": f"FLEET_{raw.stream}",
            "text": raw.text,
        }
        for raw in RAW_EVENTS
    ]
    requests = [
        {
            "subject": spec.subject,
            "kind": "request",
            "message": _reply_name(spec),
            "who": spec.served_by,
            "kept_in": None,
            "text": spec.text,
        }
        for spec in endpoints()
    ]
    return events + requests


def _reply_name(spec: EndpointSpec) -> str:
    return "raw" if spec.reply is None else spec.reply.__name__


def asyncapi(root: str, version: str) -> dict[str, Any]:
    """An AsyncAPI 3.0 document of the whole bus."""
    specs = list(endpoints())
    types: list[type[msgspec.Struct]] = list(EVENTS)
    for spec in specs:
        types += [kind for kind in (spec.request, spec.reply) if kind is not None]
    types = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    messages: dict[str, Any] = {
        kind.__name__: {
            "name": kind.__name__,
            "summary": first_line(kind),
            "contentType": "application/json",
            "payload": schema,
        }
        for kind, schema in zip(types, schemas, strict=True)
    }
    messages["Raw"] = {"name": "Raw", "summary": "bytes; see docs", "payload": True}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for event in EVENTS:
        name = event.__name__
        channels[name] = _channel(root, event.SUBJECT, [name])
        operations[f"publish{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": f"Published by {event.PUBLISHER}.",
        }
    for raw in RAW_EVENTS:
        channels[raw.name] = _channel(root, raw.subject, ["Raw"])
        operations[f"publish{raw.name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{raw.name}"},
            "summary": f"{raw.text} Published by {raw.publisher}.",
        }
    for spec in specs:
        name = re.sub(r"[^A-Za-z0-9]+", "_", spec.subject).strip("_")
        request = spec.request.__name__ if spec.request else "Raw"
        reply = spec.reply.__name__ if spec.reply else "Raw"
        channels[name] = _channel(root, spec.subject, [request])
        channels[f"{name}_reply"] = {"address": None, "messages": _messages([reply])}
        operations[name] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": f"{spec.text} (served by {spec.served_by})",
            "reply": {"channel": {"$ref": f"#/channels/{name}_reply"}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "resource-agent", "version": version},
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": components, "messages": messages},
    }


def _messages(names: list[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _channel(root: str, subject: str, names: list[str]) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": f"{root}.{subject}", "messages": _messages(names)}
    parameters = re.findall(r"\{(\w+)\}", subject)
    if parameters:
        channel["parameters"] = {name: {} for name in parameters}
    return channel
