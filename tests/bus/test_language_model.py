"""The language model's client against a real HTTP endpoint that fails in every way."""

import asyncio
import contextlib
import gzip
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import msgspec
import pytest

from agent.groq_model import MAX_ANSWER_BYTES, GroqModel
from agent.language_model import make_model, read_key
from agent.settings import SettingsError, load
from schemas.language_model import Completion, LanguageModelError
from tests.support.insights import Give, ModelEndpoint, completion
from tests.support.s3_double import http

KEY = "gsk_very-secret"
SCHEMA = {"type": "object"}


@contextlib.asynccontextmanager
async def asking(
    give: Give | bytes, *, key: str | None = KEY
) -> AsyncIterator[tuple[GroqModel, ModelEndpoint]]:
    async with ModelEndpoint(give) as endpoint:
        model = GroqModel(
            base_url=endpoint.url,
            name="openai/gpt-oss-20b",
            key=key,
            max_tokens=500,
            reasoning_effort="low",
        )
        try:
            yield model, endpoint
        finally:
            await model.close()


async def ask(model: GroqModel) -> Completion:
    async with asyncio.timeout(30):
        return await model.complete("explain", "A: hot", SCHEMA)


async def test_it_asks_for_strict_json_at_the_address_that_is_set() -> None:
    async with asking(completion('{"a": 1}')) as (model, endpoint):
        answer = await ask(model)

    assert answer == Completion(
        text='{"a": 1}', is_whole=True, prompt_tokens=900, completion_tokens=100
    )
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    body = endpoint.bodies[0]
    assert body["model"] == "openai/gpt-oss-20b"
    assert body["max_completion_tokens"] == 500
    assert body["reasoning_effort"] == "low"
    assert body["messages"] == [
        {"role": "system", "content": "explain"},
        {"role": "user", "content": "A: hot"},
    ]
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "insight", "strict": True, "schema": SCHEMA},
    }


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        pytest.param("{}", "/v1/chat/completions", id="vllm"),
        pytest.param("{}/", "/v1/chat/completions", id="slash-at-the-end"),
        pytest.param("{}/openai/v1", "/v1/openai/v1/chat/completions", id="groq"),
    ],
)
async def test_the_path_is_that_of_the_base_url(base_url: str, path: str) -> None:
    async with ModelEndpoint(completion("{}")) as endpoint:
        model = GroqModel(
            base_url=base_url.format(endpoint.url),
            name="m",
            key=None,
            max_tokens=500,
            reasoning_effort="",
        )
        await ask(model)
        await model.close()

    assert endpoint.paths == [path]
    assert "reasoning_effort" not in endpoint.bodies[0]


async def test_an_answer_cut_off_is_not_whole_and_tokens_may_be_missing() -> None:
    async with asking(completion("{", finish="length", usage=None)) as (model, _):
        answer = await ask(model)

    assert answer == Completion(text="{", is_whole=False)


@pytest.mark.parametrize(
    ("answer", "words", "is_transient", "retry_after_seconds"),
    [
        pytest.param(http(429, b"", {"Retry-After": "7"}), "429", True, 7.0, id="busy"),
        pytest.param(http(429, b"", {"Retry-After": "soon"}), "429", True, None, id="busy-soon"),
        pytest.param(http(500, b"oops"), "500", True, None, id="broken"),
        pytest.param(http(503, b"", {"Retry-After": "2.5"}), "503", True, 2.5, id="not-ready"),
        pytest.param(
            http(401, b'{"error": {"code": "invalid_api_key", "message": "gsk_very-secret"}}'),
            r"401 \(invalid_api_key\)$",
            False,
            None,
            id="wrong-key",
        ),
        pytest.param(
            http(404, b'{"error": {"code": "Ignore all; gsk_very-secret"}}'),
            "404$",
            False,
            None,
            id="code-is-no-word",
        ),
        pytest.param(
            http(307, b"", {"Location": "http://127.0.0.1:9/"}), "307", False, None, id="redirect"
        ),
        pytest.param(http(200, b"<html>"), "no chat completion", True, None, id="no-json"),
        pytest.param(http(200, b"{}"), "no chat completion", True, None, id="other-json"),
        pytest.param(http(200, b"[" * 100_000), "no chat completion", True, None, id="nested"),
        pytest.param(completion("", choices=[]), "no choices", True, None, id="no-choices"),
        pytest.param(
            completion("{}", usage={"prompt_tokens": -1, "completion_tokens": 1}),
            "no chat completion",
            True,
            None,
            id="negative-tokens",
        ),
        pytest.param(
            completion("x" * (MAX_ANSWER_BYTES + 1)), "larger than", False, None, id="huge"
        ),
        pytest.param(
            http(500, b"x" * (MAX_ANSWER_BYTES + 1)), "larger", False, None, id="huge-500"
        ),
        pytest.param(
            http(200, gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"}),
            "larger than",
            False,
            None,
            id="bomb",
        ),
        pytest.param(http(200, b"{", length=100), "no connection", True, None, id="cut-off"),
        pytest.param(b"not HTTP\r\n\r\n", "no connection", True, None, id="not-http"),
    ],
)
async def test_every_failure_is_told_in_our_words(
    answer: bytes, words: str, is_transient: bool, retry_after_seconds: float | None
) -> None:
    async with asking(answer) as (model, endpoint):
        with pytest.raises(LanguageModelError, match=words) as caught:
            await ask(model)

    assert caught.value.is_transient == is_transient
    assert caught.value.retry_after_seconds == retry_after_seconds
    assert KEY not in str(caught.value)
    assert len(endpoint.paths) == 1


async def test_a_date_says_when_to_ask_again_too() -> None:
    later = formatdate(time.time() + 600, usegmt=True)
    async with asking(http(429, b"", {"Retry-After": later})) as (model, _):
        with pytest.raises(LanguageModelError) as caught:
            await ask(model)

    assert caught.value.retry_after_seconds == pytest.approx(600, abs=60)


async def test_nobody_there_is_told() -> None:
    async with asking(b"") as (model, _):
        pass

    with pytest.raises(LanguageModelError, match="no connection") as caught:
        await ask(model)

    assert caught.value.is_transient
    await model.close()


async def test_one_that_does_not_answer_can_be_given_up() -> None:
    asked = asyncio.Event()

    async def never(_: int) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    async with asking(never) as (model, _):
        task = asyncio.create_task(ask(model))
        async with asyncio.timeout(30):
            await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_endpoint_without_a_key_gets_none() -> None:
    async with asking(completion("{}"), key=None) as (model, endpoint):
        await ask(model)

    assert "authorization" not in endpoint.headers[0]


def test_groqs_key_is_sent_to_groq_alone(tmp_path: Path) -> None:
    environ = {"GROQ_API_KEY": f" {KEY}\n"}
    file = tmp_path / "key"
    file.write_text("other-key\n")

    assert read_key("", "https://api.groq.com/openai/v1", environ) == KEY
    assert read_key("", "http://vllm:8000/v1", environ) is None
    assert read_key("", "https://api.groq.com.evil.example/v1", environ) is None
    assert read_key(str(file), "http://vllm:8000/v1", environ) == "other-key"


@pytest.mark.parametrize(
    "content", [pytest.param(b"", id="empty"), pytest.param(b"gsk\xc3\xa4secret", id="not-ascii")]
)
def test_a_key_that_cannot_be_one_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)

    with pytest.raises(SettingsError, match="api_key_file") as caught:
        read_key(str(file), "http://vllm:8000/v1", {})

    assert "secret" not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_key(str(tmp_path / "key"), "http://vllm:8000/v1", {})


@pytest.mark.parametrize(
    ("variables", "has_model", "why"),
    [
        pytest.param({}, False, "no key: set GROQ_API_KEY", id="no-key"),
        pytest.param({"GROQ_API_KEY": KEY}, True, "", id="key"),
        pytest.param({"RESOURCE_AGENT_INSIGHTS__BASE_URL": "http://h:1/v1"}, True, "", id="own"),
        pytest.param(
            {"GROQ_API_KEY": KEY, "RESOURCE_AGENT_INSIGHTS__ENABLED": "off"},
            False,
            "switched off",
            id="off",
        ),
    ],
)
def test_there_is_a_model_where_it_can_be_asked(
    variables: dict[str, str], has_model: bool, why: str
) -> None:
    model, no_model = make_model(load(environ=variables).settings, variables)

    assert (model is not None) == has_model
    assert no_model.startswith(why)


def test_a_missing_key_is_an_error_where_a_model_is_demanded() -> None:
    settings = load(environ={"RESOURCE_AGENT_INSIGHTS__ENABLED": "on"}).settings

    with pytest.raises(SettingsError, match="no key"):
        make_model(settings, {})


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ={"RESOURCE_AGENT_INSIGHTS__BASE_URL": "http://me:secret@vllm:8000/v1"})

    assert "secret" not in str(caught.value)


def test_the_sdk_is_not_imported_before_the_first_question() -> None:
    script = (
        "import sys; from agent.language_model import make_model; from agent.settings import load;"
        "assert make_model(load(environ={}).settings, {'GROQ_API_KEY': 'x'})[0];"
        "sys.exit(any(name in sys.modules for name in ('groq', 'httpx', 'pydantic')))"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_schema_is_what_strict_modes_take() -> None:
    from handlers.insights.answer import SCHEMA as ours  # noqa: PLC0415

    def objects(node: object) -> list[dict[str, object]]:
        if isinstance(node, dict):
            found = [node] if node.get("type") == "object" else []
            return found + [one for value in node.values() for one in objects(value)]
        return []

    assert len(objects(ours)) == 2
    for one in objects(ours):
        assert one["additionalProperties"] is False
        assert isinstance(one["properties"], dict)
        assert one["required"] == list(one["properties"])
    assert msgspec.json.encode(ours)
