"""What each user of deploy/nats.conf may do, tried on a real server against the catalog."""

from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client

from agent import catalog
from agent.bus import BusError, connect
from agent.bus.names import Names
from agent.nats_server.rights import deployed_rights
from schemas.lifecycle import ALL_ROLES
from tests.support.deployment import DeployedServer

pytestmark = pytest.mark.bus

USERS = tuple(deployed_rights(Names()))
PEOPLE = ("observer", "orchestrator", "operator")
MARKS = {"node": "n1", "gpu": "g1", "engine": "e1", "instance": "i1", "namespace": "default"}


class User:
    """A plain client that logs in as one user and remembers what the server refused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = Client()
        self._refused: list[str] = []

    async def connect(self, url: str) -> None:
        await self.client.connect(url, error_cb=self._note, inbox_prefix=f"_INBOX_{self.name}")

    async def _note(self, error: Exception) -> None:
        self._refused.append(str(error))

    async def refused(self) -> set[str]:
        """The subjects refused since the last call, in lower case as nats-py reports them."""
        await self.client.flush()
        await self.client.flush()  # the first PONG overtakes the error callbacks
        found = {text.split('"')[1] for text in self._refused if "permissions" in text}
        self._refused.clear()
        return found

    async def may_publish(self, *subjects: str) -> set[str]:
        for subject in subjects:
            await self.client.publish(subject, b"{}")
        denied = await self.refused()
        return {subject for subject in subjects if subject.lower() not in denied}

    async def may_subscribe(self, *subjects: str) -> set[str]:
        for subject in subjects:
            subscription = await self.client.subscribe(subject)
            await subscription.unsubscribe()
        denied = await self.refused()
        return {subject for subject in subjects if subject.lower() not in denied}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedServer]:
    started = DeployedServer(tmp_path_factory.mktemp("rights"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
async def user(server: DeployedServer, request: pytest.FixtureRequest) -> AsyncIterator[User]:
    connected = User(request.param)
    await connected.connect(server.url_of(connected.name))
    yield connected
    await connected.client.close()


def each_user(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("user", names, indirect=True, ids=names)


def example(subject: str, **more: str) -> str:
    """A subject below the root with its marks filled in."""
    for mark, value in {**MARKS, **more}.items():
        subject = subject.replace(f"{{{mark}}}", value)
    while "{" in subject:  # any other mark: a word
        subject = subject[: subject.index("{")] + "x" + subject[subject.index("}") + 1 :]
    return f"fleet.v1.{subject}"


def publishers(subject: str, text: str) -> set[str]:
    """Users that the catalog names as publishers of an event."""
    if text == "every service":
        return {role for role in ALL_ROLES if f".{role}." in f"{subject}."} or {"archive"}
    return {name for name in USERS if name in text}


def events() -> dict[str, set[str]]:
    """Every event's subject, and who publishes it by the catalog."""
    found: dict[str, set[str]] = {}
    for event in catalog.EVENTS:
        for role in ALL_ROLES if "{role}" in event.SUBJECT else ("",):
            subject = example(event.SUBJECT, role=role)
            found[subject] = publishers(subject, event.PUBLISHER)
    for raw in catalog.RAW_EVENTS:
        subject = example(raw.subject, stream="FLEET_EVICTIONS", consumer="archiver")
        found[subject] = publishers(subject, raw.publisher)
    # Which of the two kinds each may publish stands in the text of the catalog.
    by_deciders, by_handlers = {"orchestrator", "operator", "executor"}, {"handlers"}
    for verdict in ("accepted", "rejected", "superseded", "expired"):
        who = by_deciders if verdict in ("accepted", "rejected") else by_handlers
        found[example("decision.{verdict}.{pool}", verdict=verdict)] = who
    for phase in ("started", "succeeded", "failed"):
        found[example("execution.{phase}.{pool}", phase=phase)] = {"orchestrator", "executor"}
    found[example("execution.requested.{pool}")] = {"orchestrator", "handlers", "executor"}
    for action in ("scale_up", "scale_down"):  # as a rollback may need
        advice = example("recommendation.{action}.{pool}", action=action)
        found[advice] = {"handlers", "executor"}
    found[example("recommendation.tune_cache.{pool}")] = {"handlers"}
    for subject in ("decision.{verdict}", "execution.{phase}", "recommendation.{action}"):
        del found[example(f"{subject}.{{pool}}")]
    return found


@each_user(*USERS)
async def test_an_event_is_published_by_those_whom_the_catalog_names(user: User) -> None:
    wanted = {subject for subject, who in events().items() if user.name in who}

    assert await user.may_publish(*events()) == wanted


def servers(served_by: str) -> set[str]:
    if served_by.startswith("every service") or served_by == "that service":
        return set(ALL_ROLES)
    return {role for role in ALL_ROLES if role in served_by}


@each_user(*ALL_ROLES)
async def test_a_request_is_heard_by_those_who_serve_it(user: User) -> None:
    specs = [spec for spec in catalog.endpoints() if "{name}" not in spec.subject]
    subjects = {example(spec.subject): servers(spec.served_by) for spec in specs}

    heard = await user.may_subscribe(*subjects)

    assert heard == {subject for subject, who in subjects.items() if user.name in who}


@each_user(*ALL_ROLES)
async def test_a_service_hears_requests_to_itself_and_no_other_role(user: User) -> None:
    mine = f"fleet.v1.api.health.ready.{user.name}.n1"
    others = [f"fleet.v1.api.health.ready.{role}.n1" for role in ALL_ROLES if role != user.name]

    assert await user.may_subscribe(mine, *others) == {mine}


JETSTREAM = {
    "make a stream": "$JS.API.STREAM.CREATE.FLEET_METRICS",
    "make another stream": "$JS.API.STREAM.CREATE.OTHER",
    "change a stream": "$JS.API.STREAM.UPDATE.FLEET_METRICS",
    "empty a stream": "$JS.API.STREAM.PURGE.FLEET_METRICS",
    "remove a stream": "$JS.API.STREAM.DELETE.FLEET_METRICS",
    "remove a message": "$JS.API.STREAM.MSG.DELETE.FLEET_METRICS",
    "read metrics": "$JS.API.CONSUMER.CREATE.FLEET_METRICS",
    "read events": "$JS.API.CONSUMER.CREATE.FLEET_EVENTS",
    "read advice": "$JS.API.CONSUMER.CREATE.FLEET_RECOMMENDATIONS.c1",
    "read evictions": "$JS.API.CONSUMER.CREATE.FLEET_EVICTIONS.c1",
    "look at evictions": "$JS.API.STREAM.MSG.GET.FLEET_EVICTIONS",
    "take evictions": "$JS.API.CONSUMER.MSG.NEXT.FLEET_EVICTIONS.archiver",
    "settle evictions": "$JS.ACK.FLEET_EVICTIONS.archiver.1.1.1.1.0",
    "settle evictions (2.15)": "$JS.ACK._.hash.FLEET_EVICTIONS.archiver.1.1.1.1.0",
    "let metrics flow": "$JS.FC.FLEET_METRICS.consumer.1",
    "let metrics flow (2.15)": "$JS.FC._.hash.FLEET_METRICS.consumer.1",
    "let the registry flow": "$JS.FC.KV_fleet-registry.consumer.1",
    "read a dead letter": "$JS.API.STREAM.MSG.GET.FLEET_DEAD",
    "read dead letters": "$JS.API.CONSUMER.CREATE.FLEET_DEAD",
    "remove a dead letter": "$JS.API.STREAM.MSG.DELETE.FLEET_DEAD",
    "read a cached value": "$JS.API.DIRECT.GET.FLEET_EVICTION_PARTS",
    "read a part of one": "$JS.API.DIRECT.GET.FLEET_EVICTION_PARTS.fleet.v1.evicted_part.x",
    "remove the parts of one": "$JS.API.STREAM.PURGE.FLEET_EVICTION_PARTS",
    "read the registry": "$JS.API.STREAM.MSG.GET.KV_fleet-registry",
    "say whose the store is": "$KV.fleet-state.archive.owner",
    "make the archive's bucket": "$JS.API.STREAM.CREATE.KV_fleet-archive",
    "read the state": "$JS.API.STREAM.MSG.GET.KV_fleet-state",
    "read the archive's bucket": "$JS.API.STREAM.MSG.GET.KV_fleet-archive",
    "forget in the archive's bucket": "$JS.API.STREAM.PURGE.KV_fleet-archive",
    "write the archive's index": "$KV.fleet-archive.archive.1d-0",
    "write an agent's record": "$KV.fleet-registry.agent.n1",
    "write the cache's lease": "$KV.fleet-lease.cache.default",
    "write a slot's state": "$KV.fleet-state.handlers.slot.0",
    "write the configuration": "$KV.fleet-config.agent",
    "configure the cache": "$KV.fleet-config.cache.default",
    "ask the system": "$SYS.REQ.SERVER.PING",
}
MAY = {
    "agent": {"read the registry", "let the registry flow", "write an agent's record"},
    "handlers": {
        "make the archive's bucket",
        *("make a stream", "read metrics", "let metrics flow", "let metrics flow (2.15)"),
        "read events",
        *("read the registry", "let the registry flow", "read the state", "write a slot's state"),
    },
    "cache": {
        *("read events", "read the registry", "let the registry flow", "read the state"),
        *("write the cache's lease", "configure the cache"),
    },
    "archive": {
        "look at evictions",
        *("take evictions", "settle evictions", "settle evictions (2.15)"),
        *("read the registry", "let the registry flow", "read the state", "say whose the store is"),
        "make the archive's bucket",
        *("read a part of one", "remove the parts of one"),
        *("read the archive's bucket", "forget in the archive's bucket"),
        "write the archive's index",
        *("read dead letters", "remove a dead letter"),
    },
    "executor": {"read the registry", "let the registry flow"},
    "observer": set[str](),
    "orchestrator": {"read advice"},
    "operator": {
        *(what for what, subject in JETSTREAM.items() if subject.startswith("$JS.")),
        *("write the configuration", "configure the cache"),
    },
}


@each_user(*USERS)
async def test_streams_and_buckets_are_for_those_who_work_with_them(user: User) -> None:
    allowed = await user.may_publish(*JETSTREAM.values())

    assert {what for what, subject in JETSTREAM.items() if subject in allowed} == MAY[user.name]


@each_user(*USERS)
async def test_nobody_hears_the_answers_to_others_or_everything(user: User) -> None:
    foreign = [f"_INBOX_{name}.>" for name in USERS if name != user.name]
    everything = (">", "_INBOX.>", "_INBOX.*.*", "$JS.>", "$JS.API.>", "$KV.>", "$SYS.>")

    assert await user.may_subscribe(*foreign, *everything) == set()
    assert await user.may_subscribe(f"_INBOX_{user.name}.>") == {f"_INBOX_{user.name}.>"}


@each_user("observer", "orchestrator")
async def test_who_reads_events_hears_no_request_and_no_cached_value(user: User) -> None:
    subjects = {example(event.SUBJECT) for event in catalog.EVENTS}
    hidden = ("evicted.>", "evicted_part.>", "cache.>", "dead.>", "api.>", ">", "*.default")

    heard = await user.may_subscribe(*subjects, *(f"fleet.v1.{subject}" for subject in hidden))

    assert heard == subjects


@each_user("observer", "orchestrator")
async def test_who_reads_events_takes_none_away_from_a_queue_group(user: User) -> None:
    await user.client.subscribe("fleet.v1.alert.>", queue="pagers")

    assert await user.refused() == {"fleet.v1.alert.>"}


@each_user(*PEOPLE)
async def test_people_may_ask_what_is_harmless_and_only_the_operator_commands(user: User) -> None:
    harmless = {"api.health.ready", "api.gpu.metrics", "cache.default.get", "cache.default.put"}
    commands = {"cache.default.delete", "cache.other.get", "api.archive.list.default"}
    requests = {f"fleet.v1.{subject}" for subject in harmless | commands}
    wanted = harmless | (commands if user.name == "operator" else set())

    assert await user.may_publish(*requests) == {f"fleet.v1.{subject}" for subject in wanted}


@pytest.mark.parametrize("login", ["", "guest@", "agent:wrong@", "nobody:wrong@"])
async def test_nobody_comes_in_without_a_password(server: DeployedServer, login: str) -> None:
    with pytest.raises(BusError, match="refused the login"):
        await connect(f"nats://{login}127.0.0.1:{server.port}", name="stranger")
