"""The groq SDK, which speaks to Groq and to any OpenAI-compatible endpoint.

Importing it takes half a second and 35 MB, so this module is imported with the first question.
"""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import groq
import httpx
import msgspec

from schemas.language_model import Completion, LanguageModelError
from schemas.units import Count

MAX_ANSWER_BYTES = 256 * 1024
TEMPERATURE = 0.2
_SDK_PATH = "/openai/v1/chat/completions"
_TRANSIENT = frozenset({408, 409, 429})


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _ErrorDetail(msgspec.Struct):
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


class _TooLargeError(Exception):
    """More came than any answer needs."""


class _Limited(httpx.AsyncByteStream):
    """A body that fails beyond the limit, however long it goes on."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise _TooLargeError
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _limit(response: httpx.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _TooLargeError  # not asked for, and its size would be known too late
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - of an async client
    response.stream = _Limited(response.stream)


class GroqModel:
    """Asks `<base_url>/chat/completions`.

    It asks once: who waits how long and asks again is the caller's decision. At most 256 KiB of an
    answer are read, redirections are not followed, and errors tell no key and no text.

    Raises:
        LanguageModelError: certificates or proxies of the environment cannot be used.
    """

    def __init__(
        self,
        *,
        base_url: str,
        name: str,
        key: str | None,
        max_tokens: int,
        reasoning_effort: str,
    ) -> None:
        self.name = name
        self._key = key
        self._options: dict[str, Any] = {
            "model": name,
            "max_completion_tokens": max_tokens,
            "temperature": TEMPERATURE,
        }
        if reasoning_effort:
            self._options["reasoning_effort"] = reasoning_effort
        try:
            self._client = groq.AsyncGroq(
                api_key=key or "none",
                base_url=base_url.rstrip("/"),
                max_retries=0,
                timeout=None,
                default_headers={"Accept-Encoding": "identity"},
                http_client=groq.DefaultAsyncHttpxClient(
                    follow_redirects=False,
                    timeout=None,
                    event_hooks={"request": [self._direct], "response": [_limit]},
                ),
            )
        except (OSError, ValueError, httpx.InvalidURL) as error:
            raise LanguageModelError(
                f"no client could be made ({type(error).__name__})", is_transient=False
            ) from error

    async def complete(self, instructions: str, text: str, schema: Mapping[str, Any]) -> Completion:
        """Answer `text` in JSON of `schema`.

        Raises:
            LanguageModelError: no usable answer.
        """
        try:
            answer = await self._client.chat.completions.with_raw_response.create(
                messages=[
                    {"role": "system", "content": instructions},
                    {"role": "user", "content": text},
                ],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "insight", "strict": True, "schema": dict(schema)},
                },
                **self._options,
            )
        except groq.APIStatusError as error:
            response = error.response
            raise _refused(response.status_code, response.headers, response.content) from None
        except groq.APIConnectionError as error:
            if isinstance(error.__cause__, _TooLargeError):
                raise LanguageModelError(
                    f"its answer is larger than {MAX_ANSWER_BYTES} bytes", is_transient=False
                ) from None
            why = type(error.__cause__ or error).__name__
            raise LanguageModelError(f"no connection ({why})", is_transient=True) from None
        return _completion(answer.http_response.content)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def _direct(self, request: httpx.Request) -> None:
        """The SDK puts its own path behind the base URL, and does not go without a key."""
        base = str(request.url).removesuffix(_SDK_PATH)
        request.url = httpx.URL(f"{base}/chat/completions")
        if self._key is None:
            del request.headers["Authorization"]


def _completion(body: bytes) -> Completion:
    try:
        answer = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LanguageModelError("its answer is no chat completion", is_transient=True) from None
    if not answer.choices:
        raise LanguageModelError("its answer has no choices", is_transient=True)
    usage = answer.usage or _Usage()
    return Completion(
        text=answer.choices[0].message.content or "",
        is_whole=answer.choices[0].finish_reason in {"stop", None},
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> LanguageModelError:
    """An error status, with the code of its body, which is a word; its text may tell anything."""
    code = ""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = msgspec.json.decode(body, type=_ErrorBody).error.code
        if found is not None and re.fullmatch("[a-z_]{1,40}", found):
            code = f" ({found})"
    return LanguageModelError(
        f"it answered {status}{code}",
        is_transient=status in _TRANSIENT or status >= 500,
        retry_after_seconds=_retry_after(headers.get("Retry-After")),
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds, from RFC 9110's number or date; None where there is neither."""
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, min(float(header), 86_400.0))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return None
