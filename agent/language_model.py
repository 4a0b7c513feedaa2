"""The language model that settings mean: its key, and a client that is loaded when needed."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.human import reason
from agent.settings import Settings, SettingsError
from schemas.language_model import Completion, LanguageModel

KEY_VARIABLE = "GROQ_API_KEY"
_GROQ_HOST = "api.groq.com"


def read_key(key_file: str, base_url: str, environ: Mapping[str, str]) -> str | None:
    """The endpoint's key, or None. Groq's own variable is never sent to another host.

    Raises:
        SettingsError: a file without a usable key. The text does not show it.
    """
    if key_file:
        source = f"setting insights.api_key_file = {key_file!r}"
        try:
            key = Path(key_file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{source}: {reason(error)}") from None
        if not key:
            raise SettingsError(f"{source}: the file is empty")
    else:
        source = f"variable {KEY_VARIABLE}"
        key = environ.get(KEY_VARIABLE, "").strip() if _is_groq(base_url) else ""
    if not re.fullmatch("[!-~]*", key):
        raise SettingsError(f"{source}: a key holds only visible ASCII characters")
    return key or None


def make_model(settings: Settings, environ: Mapping[str, str]) -> tuple["LazyModel | None", str]:
    """The model that the settings mean, or None and why there is none.

    Raises:
        SettingsError: no usable key where one is needed.
    """
    table = settings.insights
    if table.enabled == "off":
        return None, "switched off (insights.enabled)"
    key = read_key(table.api_key_file, table.base_url, environ)
    if key is None and _is_groq(table.base_url):
        text = f"no key: set {KEY_VARIABLE} or insights.api_key_file"
        if table.enabled == "on":
            raise SettingsError(f"setting insights.enabled = 'on': {text}")
        return None, text
    return LazyModel(settings, key), ""


def _is_groq(base_url: str) -> bool:
    return urlsplit(base_url).hostname == _GROQ_HOST


class LazyModel:
    """The endpoint of `[insights]`; its SDK is imported with the first question, in a thread."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        self._settings = settings.insights
        self._key = key
        self._model: LanguageModel | None = None

    @property
    def name(self) -> str:
        """As the endpoint knows it."""
        return self._settings.model

    async def complete(self, instructions: str, text: str, schema: Mapping[str, Any]) -> Completion:
        """As LanguageModel has it."""
        if self._model is None:
            self._model = await asyncio.to_thread(self._load)
        return await self._model.complete(instructions, text, schema)

    async def close(self) -> None:
        """Close its connections."""
        if self._model is not None:
            await self._model.close()

    def _load(self) -> LanguageModel:
        from agent.groq_model import GroqModel  # noqa: PLC0415 - see its module

        return GroqModel(
            base_url=self._settings.base_url,
            name=self._settings.model,
            key=self._key,
            max_tokens=self._settings.max_tokens,
            reasoning_effort=self._settings.reasoning_effort,
        )
