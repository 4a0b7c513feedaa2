"""Asks a query endpoint of the handlers, as they would serve it, over real streams."""

import time
from collections import Counter
from collections.abc import Callable

import msgspec

from agent.bus import Bus
from handlers.queries.latest import LatestStore
from handlers.queries.service import query_endpoints
from handlers.settings import HandlersSettings
from schemas.protocols import Answer, Call


async def ask(
    bus: Bus,
    subject: str,
    request: object = None,
    *,
    settings: HandlersSettings | None = None,
    clock: Callable[[], int] = time.time_ns,
    counters: Counter[str] | None = None,
) -> bytes:
    """The answer of the endpoint that serves `subject`."""
    store = LatestStore(forget_seconds=60)
    pattern = subject.split(".")
    counters = Counter() if counters is None else counters
    for endpoint in query_endpoints(store, bus, clock, settings or HandlersSettings(), counters):
        served = endpoint.subject.split(".")
        if len(served) == len(pattern) and all(
            mine in {"*", theirs} for mine, theirs in zip(served, pattern, strict=True)
        ):
            body = b"" if request is None else msgspec.json.encode(request)
            answer = endpoint.handle(Call(subject, body, {}))
            assert not isinstance(answer, Answer)
            return (await answer).payload
    raise AssertionError(f"nobody serves {subject}")
