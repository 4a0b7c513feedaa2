import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import pytest

from handlers.queries.latest import LatestStore
from handlers.queries.service import query_endpoints
from handlers.settings import HandlersSettings
from schemas.api import LatestReply
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.protocols import Answer, Call, Delivery, Endpoint, RequestError
from tests.support.samples import START_NS, at, engine, gpu, host


class NoStreams:
    """A subscriber for endpoints that need none."""

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Callable[[], Awaitable[None]]:
        raise AssertionError(subject)

    async def follow(
        self,
        stream: str,
        on_delivery: Callable[[Delivery], Awaitable[None] | None],
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        raise AssertionError(stream)

    async def read(
        self,
        stream: str,
        *,
        subject: str = ">",
        start_sequence: int | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> AsyncGenerator[Delivery, None]:
        raise AssertionError(stream)
        yield

    async def stream_bounds(self, stream: str) -> tuple[int, int]:
        raise AssertionError(stream)


def endpoints(*messages: Message, now_seconds: float = 10) -> dict[str, Endpoint]:
    """The endpoints by subject, after `messages` came at the start."""
    store = LatestStore(forget_seconds=3600)
    for message in messages:
        store.accept(message, START_NS)
    return {
        endpoint.subject: endpoint
        for endpoint in query_endpoints(
            store, NoStreams(), lambda: at(now_seconds).ns, HandlersSettings(), Counter()
        )
    }


def ask(endpoint: Endpoint, body: object = None) -> LatestReply:
    payload = b"" if body is None else msgspec.json.encode(body)
    answer = endpoint.handle(Call(endpoint.subject, payload, {}))
    assert isinstance(answer, Answer)  # at once: nothing is awaited
    return msgspec.json.decode(answer.payload, type=LatestReply)


def test_every_query_subject_of_the_contract_is_served_once() -> None:
    store = LatestStore(forget_seconds=1)
    served = query_endpoints(store, NoStreams(), time.time_ns, HandlersSettings(), Counter())

    expected = {
        "gpu": "metrics history utilization temperature memory power",
        "engine": "history",
        "system": "cpu memory disk network all history",
        "cache": "history",
        "analysis": "utilization trends waste opportunities report history",
        "optimize": "scale_up scale_down consolidate recommendations history",
    }
    subjects = {
        f"api.{group}.{name}" for group, names in expected.items() for name in names.split()
    }
    assert sorted(endpoint.subject for endpoint in served) == sorted(
        subjects | {f"api.{group}.history.*" for group in ("gpu", "engine", "system")}
    )
    assert len({endpoint.name for endpoint in served}) == len(served)


def test_all_nodes_are_answered_with_their_age() -> None:
    served = endpoints(
        gpu("b", index=1, temperature_celsius=60.0, pool="chat", simulated=True),
        gpu("c", index=0),
        gpu("a", node="n0"),
    )

    reply = ask(served["api.gpu.temperature"])

    assert [(row.node, row.gpu, row.age_seconds) for row in reply.rows] == [
        ("n0", "a", 10.0),
        ("n1", "c", 10.0),
        ("n1", "b", 10.0),
    ]
    last = reply.rows[-1]
    assert (last.values["temperature_celsius"], last.pool, last.simulated) == (60.0, "chat", True)
    assert reply.rows[0].values["temperature_celsius"] is None


@pytest.mark.parametrize(
    ("body", "nodes", "total"),
    [
        pytest.param({}, ["n1", "n2", "n3"], 3, id="defaults"),
        pytest.param({"node": "n2"}, ["n2"], 1, id="node"),
        pytest.param({"pool": "chat"}, ["n2", "n3"], 2, id="pool"),
        pytest.param({"limit": 2}, ["n1", "n2"], 3, id="limit tells the total"),
    ],
)
def test_filters(body: dict[str, object], nodes: list[str], total: int) -> None:
    served = endpoints(
        host("n3", cpu=0.5, pool="chat"), host("n1", cpu=0.5), host("n2", cpu=0.5, pool="chat")
    )

    reply = ask(served["api.system.cpu"], body)

    assert ([row.node for row in reply.rows], reply.total) == (nodes, total)
    assert reply.rows[0].values["cpu"]["utilization_ratio"] == 0.5


def test_an_unknown_node_is_named() -> None:
    with pytest.raises(RequestError, match="404 node 'n9'"):
        ask(endpoints(host())["api.system.all"], {"node": "n9"})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "no GPU has reported metrics"),
        ({"node": "n1"}, "no GPU has reported metrics of node 'n1'"),
        ({"pool": "chat"}, "no GPU has reported metrics of pool 'chat'"),
    ],
)
def test_without_gpus_the_reply_says_so(body: dict[str, object], text: str) -> None:
    reply = ask(endpoints(host())["api.gpu.metrics"], body)

    assert (reply.rows, reply.total, reply.text) == ([], 0, text)


@pytest.mark.parametrize(
    ("body", "field"), [({"nod": "n1"}, "nod"), ({"node": "a b"}, "node"), ({"limit": 0}, "limit")]
)
def test_a_bad_request_names_the_field(body: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError, match=f"400 .*{field}"):
        ask(endpoints()["api.gpu.power"], body)


def test_values_are_forgotten_after_an_hour() -> None:
    messages = (host(), gpu())

    assert ask(endpoints(*messages, now_seconds=3599)["api.gpu.memory"]).total == 1
    assert ask(endpoints(*messages, now_seconds=3600)["api.gpu.memory"]).total == 0


def test_the_last_message_counts_when_the_servers_clock_was_set_back() -> None:
    store = LatestStore(forget_seconds=3600)
    store.accept(engine(waiting=2), at(7210).ns)
    store.accept(engine(waiting=1), at(10).ns)

    (latest,), _ = store.latest(type(engine()), at(11).ns)

    assert latest.message == engine(waiting=1)


def test_one_node_of_a_large_fleet_is_answered_in_the_order_of_its_gpus() -> None:
    served = endpoints(
        *(gpu(f"g{i}", node=f"n{i // 8}", index=7 - i % 8) for i in range(1000)),
    )

    reply = ask(served["api.gpu.utilization"], {"node": "n7", "limit": 3})

    assert [row.gpu for row in reply.rows] == ["g63", "g62", "g61"]
    assert reply.total == 8


def test_the_views_of_one_sample_are_told_apart_and_a_new_sample_replaces_them() -> None:
    store = LatestStore(forget_seconds=3600)
    served = {
        one.subject: one
        for one in query_endpoints(
            store, NoStreams(), lambda: START_NS, HandlersSettings(), Counter()
        )
    }

    told = []
    for cpu in (0.25, 0.75):
        store.accept(host("n1", cpu=cpu, memory=0.5), START_NS)
        for name in ("cpu", "memory", "cpu"):
            told.append(ask(served[f"api.system.{name}"]).rows[0].values)

    cpus = [values["cpu"]["utilization_ratio"] for values in told if "cpu" in values]
    assert cpus == [0.25, 0.25, 0.75, 0.75]
    assert ["memory" in values for values in told] == [False, True, False] * 2


@pytest.mark.parametrize(
    ("node", "pool", "seconds"),
    [
        pytest.param(None, None, 11, id="all"),
        pytest.param("n1", None, 11, id="of a node"),
        pytest.param("n9", None, 11, id="of one that is not there"),
        pytest.param(None, "chat", 11, id="of a pool"),
        pytest.param("n2", "chat", 11, id="of both"),
        pytest.param(None, None, 65, id="some are forgotten"),
        pytest.param(None, "chat", 65, id="of a pool, and some are forgotten"),
    ],
)
def test_what_was_heard_is_all_that_is_listed(
    node: str | None, pool: str | None, seconds: int
) -> None:
    store = LatestStore(forget_seconds=60)
    for number in range(20):
        message = gpu(
            f"g{number}", node=f"n{number % 3}", pool=("chat", "batch", None)[number % 4 % 3]
        )
        store.accept(message, at(number % 10).ns)

    heard = store.heard(GpuMetrics, at(seconds).ns, node=node, pool=pool)
    listed, _ = store.latest(GpuMetrics, at(seconds).ns, node=node, pool=pool)

    assert sorted(heard, key=id) == sorted(listed, key=id)
