"""The query endpoints of the handlers service: latest values, judgements, histories, advice."""

from collections import Counter
from typing import Any

import msgspec

from handlers.decisions.advice_history import AdviceHistory
from handlers.foreign import ForeignMessages
from handlers.queries.analysis_history import AnalysisHistory
from handlers.queries.cache_history import CacheHistory
from handlers.queries.history import History
from handlers.queries.latest import Latest, LatestStore, Metrics
from handlers.queries.standing import Standing
from handlers.queries.stream_reader import StreamReader
from handlers.settings import HandlersSettings
from handlers.spending.report import Reports
from schemas.api import (
    Filter,
    HistoryReply,
    HistoryRequest,
    LatestReply,
    RecommendationsReply,
    Row,
    UtilizationReply,
)
from schemas.consolidation import ConsolidationsReply
from schemas.history import (
    AdviceHistoryReply,
    AdviceHistoryRequest,
    AnalysisHistoryReply,
    AnalysisHistoryRequest,
    CacheHistoryReply,
    CacheHistoryRequest,
)
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Call, Clock, Endpoint, RequestError, Subscriber, json_endpoint
from schemas.report import (
    OpportunitiesReply,
    Report,
    ReportRequest,
    TrendsReply,
    WasteReply,
)
from schemas.units import SECOND_NS, instant
from schemas.views import GPU_VIEWS, SYSTEM_VIEWS, gpu_values, system_values


def query_endpoints(
    store: LatestStore,
    subscriber: Subscriber,
    clock: Clock,
    settings: HandlersSettings,
    counters: Counter[str],
) -> list[Endpoint]:
    """Every query endpoint the handlers service serves; they count into `counters`."""
    foreign = ForeignMessages(counters, clock)
    endpoints = [
        *(_latest("gpu", name, GpuMetrics, store, clock) for name in GPU_VIEWS),
        *(_latest("system", name, HostMetrics, store, clock) for name in SYSTEM_VIEWS),
    ]
    for group, history in (
        ("gpu", History("gpu", subscriber, settings.queries, clock, foreign)),
        ("engine", History("engine", subscriber, settings.queries, clock, foreign)),
        ("system", History("host", subscriber, settings.queries, clock, foreign)),
    ):
        endpoints += [
            json_endpoint(
                f"{group}_history{suffix}",
                f"api.{group}.history{tokens}",
                HistoryRequest,
                history.answer,
                reply_type=HistoryReply,
            )
            for suffix, tokens in (("", ""), ("_of_node", ".*"))
        ]
    read_by = (subscriber, settings.queries, clock, foreign)
    endpoints += [
        json_endpoint(
            "cache_history",
            "api.cache.history",
            CacheHistoryRequest,
            CacheHistory(*read_by).answer,
            reply_type=CacheHistoryReply,
        ),
        json_endpoint(
            "analysis_history",
            "api.analysis.history",
            AnalysisHistoryRequest,
            AnalysisHistory(*read_by).answer,
            reply_type=AnalysisHistoryReply,
        ),
        json_endpoint(
            "optimize_history",
            "api.optimize.history",
            AdviceHistoryRequest,
            AdviceHistory(*read_by).answer,
            reply_type=AdviceHistoryReply,
        ),
    ]
    reader = StreamReader(subscriber, settings.queries, foreign)
    standing = Standing(reader, settings.queries, clock)
    for group, name, reply, answer in (
        ("analysis", "utilization", UtilizationReply, standing.utilization),
        ("analysis", "waste", WasteReply, standing.waste),
        ("analysis", "trends", TrendsReply, standing.trends),
        ("analysis", "opportunities", OpportunitiesReply, standing.opportunities),
        ("optimize", "consolidate", ConsolidationsReply, standing.consolidations),
        ("optimize", "scale_up", RecommendationsReply, standing.scale_up),
        ("optimize", "scale_down", RecommendationsReply, standing.scale_down),
        ("optimize", "recommendations", RecommendationsReply, standing.recommendations),
    ):
        endpoints.append(
            json_endpoint(
                f"{group}_{name}", f"api.{group}.{name}", Filter, answer, reply_type=reply
            )
        )
    endpoints.append(
        json_endpoint(
            "analysis_report",
            "api.analysis.report",
            ReportRequest,
            Reports(reader, settings, clock).report,
            reply_type=Report,
        )
    )
    return endpoints


def _latest(
    group: str, name: str, kind: type[Metrics], store: LatestStore, clock: Clock
) -> Endpoint:
    """The last values of every node, from memory."""

    def answer(request: Filter, _call: Call) -> LatestReply:
        now_ns = clock()
        if request.node is not None and not store.knows(request.node, now_ns):
            raise RequestError(404, f"node {request.node!r} has sent no metrics of late")
        found, total = store.latest(
            kind, now_ns, node=request.node, pool=request.pool, limit=request.limit
        )
        return LatestReply(
            answered_at=instant(now_ns),
            rows=[_row(name, latest, now_ns) for latest in found],
            total=total,
            text="" if total else _nothing(group, request),
        )

    return json_endpoint(
        f"{group}_{name}", f"api.{group}.{name}", Filter, answer, reply_type=LatestReply
    )


def _row(name: str, latest: Latest, now_ns: int) -> Row:
    message = latest.message
    values: Any = latest.encoded.get(name)
    if values is None:
        values = latest.encoded[name] = msgspec.Raw(msgspec.json.encode(_values(name, message)))
    return Row(
        node=message.node,
        gpu=message.gpu if isinstance(message, GpuMetrics) else None,
        pool=message.pool,
        observed_at=message.observed_at,
        # The stream's clock may be a little ahead of ours.
        age_seconds=max(0.0, (now_ns - latest.stored_ns) / SECOND_NS),
        simulated=message.simulated,
        values=values,
    )


def _values(name: str, message: Metrics) -> dict[str, Any]:
    if isinstance(message, GpuMetrics):
        return gpu_values(name, message)
    return system_values(name, message) if isinstance(message, HostMetrics) else {}


def _nothing(group: str, request: Filter) -> str:
    what = "GPU" if group == "gpu" else "node"
    where = [
        f"{word} {value!r}"
        for word, value in (("node", request.node), ("pool", request.pool))
        if value is not None
    ]
    return f"no {what} has reported metrics" + (f" of {' and '.join(where)}" if where else "")
