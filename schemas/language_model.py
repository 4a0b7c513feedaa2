"""What the handlers ask of a language model, wherever it runs."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote, and what that took; tokens are None where its endpoint does not say."""

    text: str
    is_whole: bool
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class LanguageModelError(RuntimeError):
    """A model that did not answer. The text names neither keys nor what was asked.

    `is_transient`: asking again can help, not before `retry_after_seconds` where that is told.
    """

    def __init__(
        self, text: str, *, is_transient: bool, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.is_transient = is_transient
        self.retry_after_seconds = retry_after_seconds


class LanguageModel(Protocol):
    """A model behind an endpoint."""

    @property
    def name(self) -> str:
        """As the endpoint knows it."""

    async def complete(self, instructions: str, text: str, schema: Mapping[str, Any]) -> Completion:
        """Answer `text` in JSON of `schema`, which the endpoint may not keep to; asks once.

        The caller sets the deadline.

        Raises:
            LanguageModelError: no usable answer.
        """

    async def close(self) -> None:
        """Close its connections."""
