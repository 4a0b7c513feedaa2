"""The part of `ResourceAgent` that is about time ranges."""

from datetime import datetime
from typing import TypeVar

import msgspec

from agent.connected import Connected
from schemas.analysis import Scope
from schemas.api import HistoryReply, HistoryRequest
from schemas.history import (
    AdviceHistoryReply,
    AdviceHistoryRequest,
    AnalysisHistoryReply,
    AnalysisHistoryRequest,
    AnalysisKind,
    CacheHistoryReply,
    CacheHistoryRequest,
)
from schemas.scaling import Action
from schemas.units import token_or_none

T = TypeVar("T")

HISTORY_TIMEOUT_SECONDS = 15.0
"""Handlers take 5 s at most for one answer, and few answer several at once."""


class HistoryCalls(Connected):
    """A range is `start` to `end` (default: now), or the last `seconds`, at most 90 days.

    More than `limit` rows are thinned evenly; `matched` says how many there were, `source` where
    they are from, and `text` why there are none. Each call raises
    `schemas.protocols.RequestError` when it is refused.
    """

    async def gpu_history(
        self,
        *,
        node: str | None = None,
        gpu: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> HistoryReply:
        """GPU samples of a time range; the reply says whether from raw metrics or rollups."""
        request = HistoryRequest(
            node=token_or_none(node),
            gpu=gpu,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
        )
        return await self._history("gpu", request, HistoryReply)

    async def engine_history(
        self,
        *,
        node: str | None = None,
        engine: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> HistoryReply:
        """Engine samples of a time range; the reply says whether from raw metrics or rollups."""
        request = HistoryRequest(
            node=token_or_none(node),
            engine=engine,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
        )
        return await self._history("engine", request, HistoryReply)

    async def system_history(
        self,
        *,
        node: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> HistoryReply:
        """Host samples of a time range; the reply says whether from raw metrics or rollups."""
        request = HistoryRequest(
            node=token_or_none(node), seconds=seconds, start=start, end=end, limit=limit
        )
        return await self._history("system", request, HistoryReply)

    async def cache_history(
        self,
        *,
        instance: str | None = None,
        namespace: str | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> CacheHistoryReply:
        """Samples of caches, ours and LMCaches, each namespace by itself."""
        request = CacheHistoryRequest(
            instance=instance,
            namespace=namespace,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
        )
        return await self._history("cache", request, CacheHistoryReply)

    async def analysis_history(
        self,
        kind: AnalysisKind,
        *,
        node: str | None = None,
        pool: str | None = None,
        scope: Scope | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
        messages: bool = False,
    ) -> AnalysisHistoryReply:
        """What was judged of the fleet, pools and nodes; `messages`: each event as published."""
        request = AnalysisHistoryRequest(
            kind=kind,
            node=token_or_none(node),
            pool=token_or_none(pool),
            scope=scope,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
            messages=messages,
        )
        return await self._history("analysis", request, AnalysisHistoryReply)

    async def advice_history(
        self,
        *,
        pool: str | None = None,
        action: Action | None = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
    ) -> AdviceHistoryReply:
        """What was advised, and what became of it; of more than `limit` the newest."""
        request = AdviceHistoryRequest(
            pool=token_or_none(pool),
            action=action,
            seconds=seconds,
            start=start,
            end=end,
            limit=limit,
        )
        return await self._history("optimize", request, AdviceHistoryReply)

    async def _history(self, group: str, request: msgspec.Struct, reply: type[T]) -> T:
        return await self._ask(
            f"api.{group}.history", request, reply, timeout_seconds=HISTORY_TIMEOUT_SECONDS
        )
