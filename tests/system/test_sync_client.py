"""The clients without `await`: the same calls, from scripts, threads, and a running loop."""

import inspect
import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import assert_type

import pytest

from agent.bus import BusError
from agent.client import CacheClient, ResourceAgent
from agent.sync_client import SyncCacheClient, SyncResourceAgent
from schemas.alert_api import AlertsReply
from schemas.api import LatestReply
from schemas.lifecycle import ROLES
from schemas.protocols import RequestError
from schemas.report import WasteReply
from schemas.run import RunStep
from tests.support.program import DEADLINE_SECONDS, ROOT, Up, environment, running_up
from tests.support.server import NatsServer
from tests.support.waiting import until_in_thread

pytestmark = pytest.mark.bus

SECONDS = 30.0
NOT_CALLS = {"connect", "close"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(
        tmp_path_factory.mktemp("up"),
        *("--node", "n1", "--simulate-gpus", "2xH100"),
        agent__interval_seconds=0.5,
    ) as running:
        yield running


def calls(kind: type) -> dict[str, object]:
    """What a client can be asked, by name."""
    return {
        name: call
        for name, call in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in NOT_CALLS
    }


@pytest.mark.parametrize(
    ("waiting", "awaited", "left_out"),
    [
        pytest.param(SyncResourceAgent, ResourceAgent, set(), id="ResourceAgent"),
        pytest.param(SyncCacheClient, CacheClient, {"open"}, id="CacheClient"),
    ],
)
def test_every_call_is_there_with_its_parameters_and_docstring(
    waiting: type, awaited: type, left_out: set[str]
) -> None:
    theirs, ours = calls(awaited), calls(waiting)

    assert ours.keys() == theirs.keys() - left_out
    assert not [name for name, call in ours.items() if inspect.iscoroutinefunction(call)]
    for name in ours.keys() - {"keys", "of"}:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name])  # type: ignore[arg-type]
        assert inspect.getdoc(ours[name]) == inspect.getdoc(theirs[name])


def test_a_script_asks_and_gets_typed_answers(up: Up) -> None:
    steps: list[RunStep] = []
    with SyncResourceAgent.connect(up.url) as agent:
        gpus = assert_type(agent.gpu("power", fresh_from="n1"), LatestReply)
        waste = assert_type(agent.get_waste(), WasteReply)
        alerts = assert_type(agent.alerts(severity="critical"), AlertsReply)
        health = agent.health()
        run = agent.analyze(insight=False, on_step=steps.append)

    assert len(gpus.rows) == 2
    assert waste.answered_at <= alerts.answered_at
    assert {one.role for one in health.instances} == set(ROLES)
    assert len(steps) == len(run.steps)


async def test_a_running_loop_does_not_mind(up: Up) -> None:
    with SyncCacheClient.connect(up.url) as cache:
        version = cache.put("notebook", b"cell")
        value = cache.get("notebook")

    async with await CacheClient.connect(up.url) as other:
        assert (await other.meta("notebook")).version == version
    assert value == b"cell"


def test_the_cache_is_used_as_by_the_other_client(up: Up) -> None:
    large = bytes(range(256)) * 4000
    buffer, file = bytearray(len(large)), io.BytesIO()
    with SyncCacheClient.connect(up.url) as cache:
        cache.put_many({f"many-{number}": b"x" for number in range(3)})
        many, keys = cache.get_many(["many-0", "none", "many-2"]), cache.keys("many-")
        cache.put("large", large)
        sizes = cache.get_into("large", buffer), cache.get_to("large", file)
        mine, other = cache.of("default", client="me"), cache.of("default", client="other")
        mine.close()  # which ends nothing: the connection is the first one's
        deleted = [cache.delete("large").existed, mine.exists("large"), other.exists("large")]

    assert many == {"many-0": b"x", "many-2": b"x"}
    assert sorted(keys) == ["many-0", "many-1", "many-2"]
    assert sizes == (len(large), len(large))
    assert buffer == large == file.getvalue()
    assert deleted == [True, False, False]


def test_many_threads_share_one_client(up: Up) -> None:
    with SyncCacheClient.connect(up.url) as cache, ThreadPoolExecutor(8) as pool:

        def put_and_get(number: int) -> bool:
            key, value = f"thread-{number}", str(number).encode()
            cache.put(key, value)
            return cache.get(key) == value

        assert all(pool.map(put_and_get, range(100), timeout=SECONDS))


def test_how_the_cache_is_asked_is_said_as_to_the_other_client(nats: NatsServer) -> None:
    with SyncCacheClient.connect(nats.url) as cache:
        before = (cache.patient, cache.coalesce)
        cache.patient = cache.coalesce = False
        other = cache.of("other")
        asked = [(one._client.patient, one._client.coalesce) for one in (cache, other)]

    assert before == (True, True)
    assert asked == [(False, False)] * 2
    assert (other.patient, other.coalesce) == (False, False)


def test_errors_are_those_of_the_other_client(up: Up) -> None:
    with SyncResourceAgent.connect(up.url) as agent, SyncCacheClient.connect(up.url) as cache:
        with pytest.raises(RequestError) as unknown:
            agent.system("cpu", node="nobody")
        with pytest.raises(RequestError) as malformed:
            agent.configure_lmcache({"max_size_mb": -1})
        with pytest.raises(ValueError, match="empty"):
            cache.get("")
        with pytest.raises(RequestError) as conflict:
            cache.put("errors", b"2", version="000000000000-0000000000")

    assert (unknown.value.code, malformed.value.code, conflict.value.code) == (404, 400, 409)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_where_no_server_is_the_thread_ends_with_the_error() -> None:
    with pytest.raises(BusError, match="no NATS server answers"):
        SyncResourceAgent.connect("nats://127.0.0.1:9")

    assert "ResourceAgent" not in threads()


def test_a_call_ends_at_its_deadline(nats: NatsServer) -> None:
    with SyncCacheClient.connect(nats.url) as cache:
        nats.pause()
        try:
            with pytest.raises(RequestError) as late:
                cache.exists("key", deadline_seconds=0.2)
        finally:
            nats.resume()

    assert late.value.code == 408


def test_closing_ends_calls_under_way_and_refuses_new_ones(nats: NatsServer) -> None:
    cache = SyncCacheClient.connect(nats.url)
    nats.pause()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cache.exists, "key")
            until_in_thread(lambda: bool(cache._loop._waited_for))
            cache.close()
            with pytest.raises(RequestError, match="closed meanwhile") as cut_off:
                waiting.result(SECONDS)
    finally:
        nats.resume()
    cache.close()
    with pytest.raises(RequestError, match="it is closed") as refused:
        cache.exists("key")

    assert (cut_off.value.code, refused.value.code) == (503, 503)
    assert "CacheClient" not in threads()


def test_a_call_from_a_callback_is_refused_and_the_run_goes_on(up: Up) -> None:
    errors: list[RuntimeError] = []
    with SyncResourceAgent.connect(up.url) as agent:

        def ask(_step: RunStep) -> None:
            try:
                agent.health()
            except RuntimeError as error:
                errors.append(error)

        run = agent.analyze(insight=False, on_step=ask)

    assert len(errors) == len(run.steps)
    assert "wait for itself" in str(errors[0])


def run_script(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run `code` to its end as a program, where warnings are errors."""
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_a_script_that_forgets_to_close_ends_without_noise(up: Up, tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        "from agent.sync_client import SyncResourceAgent\n"
        "agent = SyncResourceAgent.connect()\n"
        "print(agent.health().live)\n",
        NATS_URL=up.url,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == b"True"


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number", "last_line"),
    [
        pytest.param("docs/clients.md", 0, "b'answer'", id="clients-asyncio"),
        pytest.param("docs/clients.md", 1, "b'answer'", id="clients-without"),
        pytest.param("README.md", 0, "RecommendationsReply(", id="readme"),
    ],
)
def test_the_lines_of_the_documentation_run(
    up: Up, tmp_path: Path, page: str, number: int, last_line: str
) -> None:
    with SyncResourceAgent.connect(up.url) as agent:
        until_in_thread(lambda: len(agent.get_gpu_metrics().rows) >= 2)

    done = run_script(tmp_path, code_of(page)[number], NATS_URL=up.url)

    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["n1", "n1"]
    assert lines[-1].startswith(last_line)


def test_all_lines_of_the_page_are_run() -> None:
    assert (len(code_of("docs/clients.md")), len(code_of("README.md"))) == (2, 1)


def test_the_documentation_lists_every_call() -> None:
    text = (ROOT / "docs/clients.md").read_text()

    assert not [name for name in calls(ResourceAgent) if f"`{name}`" not in text]
