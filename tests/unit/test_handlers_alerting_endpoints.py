"""What is listed at an instant: order, filters, and silences to the nanosecond."""

from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from handlers.alerting.book import SILENCE_KEY, AlertBook
from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.endpoints import AlertEndpoints
from handlers.foreign import ForeignMessages
from handlers.settings import QuerySettings
from schemas.alert_api import AlertFilter, AlertHistoryRequest
from schemas.alerts import Silence
from schemas.api import Nothing
from schemas.protocols import Call, Delivery, RequestError
from schemas.units import instant
from tests.support.alerting import alerts_handler, played
from tests.support.samples import START_NS, at, gpu, host

CALL = Call("api.alert.list", b"", {})


def endpoints(book: AlertBook, now_ns: int, **settings: int) -> AlertEndpoints:
    """At that instant, with a warning on a disk and then a critical on a GPU open."""
    dead = gpu(is_reachable=False, pool="chat")
    opened = played((0, host(disks={"/": 0.92})), (5, dead), (15, dead), handler=alerts_handler())

    async def read(*_: object, **__: object) -> AsyncIterator[Delivery]:
        for number, alert in enumerate(opened):
            yield Delivery(alert.subject(), msgspec.json.encode(alert), {}, number, now_ns)

    configuration: Any = SimpleNamespace(book=book)
    open_alerts: Any = SimpleNamespace(all=lambda: opened)
    stream: Any = SimpleNamespace(read=read)
    foreign = ForeignMessages(Counter(), lambda: now_ns)
    queries = QuerySettings(**settings)
    return AlertEndpoints(configuration, open_alerts, stream, queries, lambda: now_ns, foreign)


def silenced(start_ns: int, end_ns: int) -> AlertBook:
    book = AlertBook(DEFAULT_RULES)
    silence = Silence(
        silence_id="s1",
        rule="gpu_*",
        starts_at=instant(start_ns),
        ends_at=instant(end_ns),
        author="ann",
    )
    book.heard(f"{SILENCE_KEY}s1", msgspec.json.encode(silence), 1, START_NS)
    return book


@pytest.mark.parametrize(
    ("second", "shown", "state"),
    [
        pytest.param(19.999999, ["gpu_unreachable", "disk_full"], "pending", id="before"),
        pytest.param(20, ["disk_full"], "active", id="from its start"),
        pytest.param(39.999999, ["disk_full"], "active", id="just before its end"),
        pytest.param(40, ["gpu_unreachable", "disk_full"], "expired", id="at its end"),
    ],
)
def test_a_silence_counts_from_its_start_to_before_its_end(
    second: float, shown: list[str], state: str
) -> None:
    asked = endpoints(silenced(at(20).ns, at(40).ns), at(second).ns)

    reply = asked.list_open(AlertFilter(), CALL)
    (silence,) = asked.silences(Nothing(), CALL).rows

    assert [alert.rule.split("-")[0] for alert in reply.rows] == shown
    assert reply.silenced_total == 2 - len(shown) == silence.alerts
    assert silence.state == state


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"severity": "critical"}, ["gpu_unreachable"]),
        ({"severity": "info"}, ["gpu_unreachable", "disk_full"]),
        ({"pool": "chat"}, ["gpu_unreachable"]),
        ({"rule": "disk_full"}, ["disk_full"]),
        ({"id": "n2"}, []),
        ({"scope": "fleet"}, []),
        ({"limit": 1}, ["gpu_unreachable"]),
    ],
)
def test_open_alerts_are_filtered_and_the_worst_stand_first(
    fields: dict[str, Any], shown: list[str]
) -> None:
    reply = endpoints(AlertBook(DEFAULT_RULES), at(60).ns).list_open(AlertFilter(**fields), CALL)

    assert [alert.rule.split("-")[0] for alert in reply.rows] == shown
    assert reply.total >= len(shown)
    assert bool(reply.text) == (not shown)


async def test_of_more_transitions_than_asked_for_the_newest_are_told() -> None:
    asked = endpoints(AlertBook(DEFAULT_RULES), at(60).ns)

    reply = await asked.history(AlertHistoryRequest(limit=1), CALL)

    assert [alert.rule.split("-")[0] for alert in reply.rows] == ["gpu_unreachable"]
    assert reply.matched == 2


async def test_a_history_that_is_too_much_to_read_is_refused() -> None:
    asked = endpoints(AlertBook(DEFAULT_RULES), at(60).ns, history_scan_bytes=1000)

    with pytest.raises(RequestError, match="413 this range holds more alerts than 1000 bytes"):
        await asked.history(AlertHistoryRequest(), CALL)
