"""Scaling a Deployment, against a double of the Kubernetes API on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.decisions import execute
from agent.executors.kubernetes import KubernetesTarget
from agent.executors.settings import ExecutorSettings, KubernetesSettings
from agent.executors.target import ActionError
from schemas.scaling import Recommendation
from tests.support.advice import advice, decision, tell
from tests.support.executing import executing, serving
from tests.support.kubernetes import KubernetesDouble

SCALE = "/apis/apps/v1/namespaces/prod/deployments/chat/scale"
UP = advice(replicas_from=2, replicas_to=4)


@pytest.fixture
async def api() -> AsyncIterator[KubernetesDouble]:
    double = KubernetesDouble(chat=2)
    async with double.serve():
        yield double


@pytest.fixture
def settings(api: KubernetesDouble, tmp_path: Path) -> KubernetesSettings:
    token_file = tmp_path / "token"
    token_file.write_text(f"{api.token}\n")
    return KubernetesSettings(
        server=api.url,
        token_file=str(token_file),
        ca_file="",
        deployments={"chat": "prod/chat", "gone": "prod/gone"},
    )


@pytest.fixture
async def target(settings: KubernetesSettings) -> AsyncIterator[KubernetesTarget]:
    made = KubernetesTarget(settings)
    yield made
    await made.close()


async def test_patches_the_scale_that_it_has_read(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    before = await target.observe("chat")
    done = await target.scale(UP)

    assert (before, api.replicas["chat"], await target.observe("chat")) == (2, 4, 4)
    assert done == "scaled deployment prod/chat from 2 to 4"
    patch = {"metadata": {"resourceVersion": "100"}, "spec": {"replicas": 4}}
    assert api.seen[2] == ("PATCH", SCALE, "application/merge-patch+json", patch)


async def test_a_scale_of_zero_comes_without_the_number(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    api.replicas["chat"] = 0

    assert await target.observe("chat") == 0


@pytest.mark.parametrize(
    ("replicas_to", "what", "why"),
    [
        pytest.param(4, {"token": "other"}, "401: the token of .* is not accepted", id="401"),
        pytest.param(
            4, {"may_patch": False}, "403: the token may not do that: .*; cannot patch", id="403"
        ),
        pytest.param(
            4, {"replicas": {}}, "404: there is no such Deployment; .*not found", id="404"
        ),
        pytest.param(2000, {}, "422: spec.replicas: Invalid value", id="422"),
    ],
)
async def test_what_is_refused_is_told_in_words(
    api: KubernetesDouble,
    target: KubernetesTarget,
    replicas_to: int,
    what: dict[str, Any],
    why: str,
) -> None:
    for name, value in what.items():
        setattr(api, name, value)

    with pytest.raises(ActionError, match=f"the API answers {why}"):
        await target.scale(msgspec.structs.replace(UP, replicas_to=replicas_to))

    assert api.replicas.get("chat") in (2, None)


async def test_the_token_is_not_taken_to_where_an_answer_points(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    elsewhere = KubernetesDouble(chat=9)
    async with elsewhere.serve():
        path = "/apis/apps/v1/namespaces/inference/deployments/chat/scale"
        api.next_answers.append((307, {"Location": f"{elsewhere.url}{path}"}))
        with pytest.raises(ActionError, match="the API answers 307"):
            await target.observe("chat")

    assert elsewhere.seen == []


async def test_an_answer_without_end_is_not_read(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    api.padding_bytes = 300 * 1024

    with pytest.raises(ActionError, match="the API answers more than 262144 bytes"):
        await target.observe("chat")


async def test_it_waits_for_a_busy_api_but_not_for_ever(
    api: KubernetesDouble, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.executors.kubernetes.MAX_WAIT_SECONDS", 0.01)
    api.next_answers.append((429, {"Retry-After": "3600"}))

    async with asyncio.timeout(30):
        assert await target.observe("chat") == 2


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_passes_is_tried_three_times(
    api: KubernetesDouble, target: KubernetesTarget, status: int
) -> None:
    api.next_answers.extend([(status, {"Retry-After": "0"})] * 2)
    assert await target.observe("chat") == 2

    api.next_answers.extend([(status, {"Retry-After": "0"})] * 3)
    with pytest.raises(ActionError, match=f"the API answers {status}: asked for by the test"):
        await target.observe("chat")

    assert len(api.seen) == 6


async def test_a_conflict_of_the_status_alone_is_tried_again(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    def status_changes_once() -> None:
        api.version += 1
        api.on_patch = lambda: None

    api.on_patch = status_changes_once

    await target.scale(UP)

    assert api.replicas["chat"] == 4
    assert [method for method, *_ in api.seen] == ["GET", "PATCH", "GET", "PATCH"]


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        pytest.param(5, "somebody else scaled deployment prod/chat meanwhile, from 2 to 5", id="5"),
        pytest.param(2, "deployment prod/chat changes all the time: 3 conflicts", id="same"),
    ],
)
async def test_what_somebody_else_changes_meanwhile_is_left_to_them(
    api: KubernetesDouble, target: KubernetesTarget, theirs: int, why: str
) -> None:
    api.on_patch = lambda: api.change("chat", theirs)

    with pytest.raises(ActionError, match=why) as found:
        await target.scale(UP)

    assert api.replicas["chat"] == theirs
    assert not found.value.has_acted


async def test_who_finds_the_target_reached_is_content(
    api: KubernetesDouble, target: KubernetesTarget
) -> None:
    api.on_patch = lambda: api.change("chat", 4)

    assert await target.scale(UP) == "deployment prod/chat has 4 now"


@pytest.mark.parametrize(
    ("one", "theirs"),
    [
        pytest.param(UP, 6, id="up"),
        pytest.param(advice(action="scale_down", replicas_from=2, replicas_to=1), 5, id="down"),
    ],
)
async def test_what_somebody_has_changed_since_it_was_looked_at_is_left_to_them(
    api: KubernetesDouble, target: KubernetesTarget, one: Recommendation, theirs: int
) -> None:
    assert await target.observe("chat") == 2
    api.change("chat", theirs)

    with pytest.raises(ActionError, match=f"somebody else .* to {theirs}") as found:
        await target.scale(one)

    assert api.replicas["chat"] == theirs
    assert not found.value.has_acted


@pytest.mark.parametrize("is_lost_for_good", [False, True], ids=["one-answer", "all-answers"])
async def test_a_change_whose_answer_is_lost_is_looked_up(
    api: KubernetesDouble, settings: KubernetesSettings, is_lost_for_good: bool
) -> None:
    async def silent() -> None:
        if is_lost_for_good:
            api.answers.clear()
        await asyncio.Event().wait()

    api.after_patch = silent
    target = KubernetesTarget(msgspec.structs.replace(settings, call_seconds=0.5))

    if is_lost_for_good:
        with pytest.raises(ActionError, match="did not answer") as found:
            await target.scale(UP)
        assert found.value.has_acted
    else:
        assert await target.scale(UP) == "scaled deployment prod/chat from 2 to 4"

    assert api.replicas["chat"] == 4
    await target.close()


async def test_a_slow_api_has_a_deadline(
    api: KubernetesDouble, settings: KubernetesSettings
) -> None:
    api.answers.clear()
    target = KubernetesTarget(msgspec.structs.replace(settings, call_seconds=0.2))

    with pytest.raises(ActionError, match=r"did not answer within 0.2 s"):
        await target.observe("chat")

    await target.close()


async def test_an_api_that_is_not_there_is_told(settings: KubernetesSettings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        target = KubernetesTarget(msgspec.structs.replace(settings, server=server))

        with pytest.raises(ActionError, match="cannot connect to the API: Connection refused"):
            await target.observe("chat")

    await target.close()


@pytest.fixture
def token_file(settings: KubernetesSettings) -> Path:
    return Path(settings.token_file)


def renew(token_file: Path, content: str | None) -> None:
    """Another token, or none."""
    token_file.unlink()
    if content is not None:
        token_file.write_text(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot read token_file .*No such file"), ("", "holds no token"), ("a\nb", "no token")],
    ids=["missing", "empty", "two-lines"],
)
async def test_a_token_file_that_is_of_no_use_is_named(
    target: KubernetesTarget, token_file: Path, content: str | None, why: str
) -> None:
    renew(token_file, content)

    with pytest.raises(ActionError, match=why):
        await target.observe("chat")


async def test_a_token_that_was_renewed_is_used_at_once(
    api: KubernetesDouble, target: KubernetesTarget, token_file: Path
) -> None:
    await target.observe("chat")
    api.token = "renewed"
    renew(token_file, "renewed")

    assert await target.observe("chat") == 2


async def test_a_ca_file_that_is_none_is_named(
    settings: KubernetesSettings, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    target = KubernetesTarget(
        msgspec.structs.replace(
            settings, server="https://127.0.0.1:1", ca_file=str(tmp_path / "ca.crt")
        )
    )

    with pytest.raises(ActionError, match=r"cannot use ca_file .*ca.crt: no certificate in it"):
        await target.observe("chat")

    await target.close()


def test_only_pools_of_the_settings_are_changed(target: KubernetesTarget) -> None:
    assert target.refusal("chat") == ""
    assert target.refusal("code") == "pool code is not in executor.kubernetes.deployments"
    assert target.plan(UP) == "would scale deployment prod/chat to 4"


@pytest.mark.bus
async def test_accepted_advice_scales_the_deployment(
    bus: Bus, api: KubernetesDouble, settings: KubernetesSettings
) -> None:
    one = advice(replicas_to=4)
    await tell(bus, one, decision(one))
    executor = ExecutorSettings(kind="kubernetes", dry_run=False, kubernetes=settings)

    async with serving(bus), executing(bus, KubernetesTarget(settings), executor):
        reply = await execute(bus, one.recommendation_id, dry_run=False, wait_seconds=30)

    end = reply.execution
    assert (end.phase, end.replicas_before, end.replicas_after) == ("succeeded", 2, 4)
    assert end.text == "scaled deployment prod/chat from 2 to 4"
    assert api.replicas["chat"] == 4


@pytest.mark.bus
async def test_what_somebody_else_changed_is_not_to_be_taken_back(
    bus: Bus, api: KubernetesDouble, settings: KubernetesSettings
) -> None:
    one = advice(replicas_to=4)
    await tell(bus, one, decision(one))
    api.on_patch = lambda: api.change("chat", 5)
    executor = ExecutorSettings(kind="kubernetes", dry_run=False, kubernetes=settings)

    async with serving(bus), executing(bus, KubernetesTarget(settings), executor):
        reply = await execute(bus, one.recommendation_id, dry_run=False, wait_seconds=30)

    end = reply.execution
    assert (end.phase, end.replicas_before, end.replicas_after) == ("failed", 2, 5)
    assert end.rollback is None
