"""Answers `api.cache.history`: what caches did in a time range, from metrics or minutes."""

from collections.abc import Hashable

import msgspec

from handlers.foreign import ForeignMessages
from handlers.queries.history import DEFAULT_SECONDS
from handlers.queries.raw_or_rollups import RawOrRollups, Wanted
from handlers.queries.time_range import time_range
from handlers.settings import QuerySettings
from schemas.engines import CacheMetrics
from schemas.history import CacheHistoryReply, CacheHistoryRequest, CacheSample
from schemas.message import UNDECODABLE
from schemas.metrics import Rollup
from schemas.protocols import Call, Clock, Delivery, Subscriber
from schemas.units import instant, paired, token
from schemas.views import cache_numbers


class _Whose(msgspec.Struct):
    """All of CacheMetrics that says whose it is: the rest is read where it is wanted."""

    namespace: str


_CACHE = msgspec.json.Decoder(CacheMetrics)
_WHOSE = msgspec.json.Decoder(_Whose)


class CacheHistory:
    """Reads a time range of the metrics of caches, ours and LMCaches, as History does."""

    def __init__(
        self,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._samples = RawOrRollups(subscriber, settings, foreign)
        self._clock = clock
        self._foreign = foreign

    async def answer(self, request: CacheHistoryRequest, _call: Call) -> CacheHistoryReply:
        """The samples of the range.

        Raises:
            RequestError: 400 a bad range, 413 too much to read, 503 no answer from the stream.
        """
        start_ns, end_ns = time_range(
            request.start,
            request.end,
            request.seconds,
            self._clock(),
            default_seconds=DEFAULT_SECONDS,
        )
        wanted = self._wanted(request.instance, request.namespace)
        what = "cache metric"
        for word, name in (("instance", request.instance), ("namespace", request.namespace)):
            what += f" of {word} {name!r}" if name is not None else ""
        found = await self._samples.read(wanted, start_ns, end_ns, request.limit, what=what)
        return CacheHistoryReply(
            source=found.source,
            start=instant(start_ns),
            end=instant(end_ns),
            samples=list(found.samples),
            matched=found.matched,
            text=found.text,
        )

    def _wanted(self, instance: str | None, namespace: str | None) -> Wanted[CacheSample]:
        def series(delivery: Delivery) -> Hashable | None:
            try:
                its_namespace = _WHOSE.decode(delivery.payload).namespace
            except UNDECODABLE as error:
                self._foreign.pass_over(delivery, error)
                return None
            return (delivery.subject, its_namespace) if namespace in {None, its_namespace} else None

        def of_rollup(rollup: Rollup) -> CacheSample | None:
            if rollup.instance is None or rollup.namespace is None:
                return None
            if instance not in {None, rollup.instance} or namespace not in {None, rollup.namespace}:
                return None
            return CacheSample(
                at=rollup.minute_at,
                instance=rollup.instance,
                namespace=rollup.namespace,
                node=rollup.node,
                pool=rollup.pool,
                simulated=rollup.simulated,
                values=dict(rollup.metrics),
            )

        ids = ["*"]
        if instance and namespace:
            # The latter is the id of older versions, where it is not still that of today.
            ids = [paired(instance, namespace), token(f"{instance}-{namespace}")]
        return Wanted(
            raw_subject=f"metrics.cache.{instance or '*'}",
            rollup_subjects=[f"rollup.cache.{id_}" for id_ in dict.fromkeys(ids)],
            raw_series=series,
            raw_sample=_sample,
            rollup_sample=of_rollup,
            series=lambda sample: (sample.instance, sample.namespace),
            narrower="name an instance and a namespace",
        )


def _sample(payload: bytes) -> CacheSample:
    metrics = _CACHE.decode(payload)
    return CacheSample(
        at=metrics.observed_at,
        instance=metrics.instance,
        namespace=metrics.namespace,
        node=metrics.node,
        pool=metrics.pool,
        simulated=metrics.simulated,
        values=dict(cache_numbers(metrics)),
    )
