"""Settings of the insights."""

from typing import Annotated, Literal

from msgspec import Meta

from handlers.settings import Table

GROQ_URL = "https://api.groq.com/openai/v1"

_Price = Annotated[float, Meta(ge=0)] | None


class InsightsSettings(Table, frozen=True, kw_only=True):
    """Explanations of what is going on, by a language model or a template."""

    enabled: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="auto: written by the model where there is a key (or `base_url` is not "
            "Groq's), else by a template; on: a missing key is an error; off: none are written"
        ),
    ] = "auto"
    base_url: Annotated[
        str,
        Meta(
            pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\s?#]*)?$",
            description="OpenAI-compatible endpoint, the part before `/chat/completions`: Groq's, "
            "or your own like http://vllm:8000/v1",
        ),
    ] = GROQ_URL
    model: Annotated[str, Meta(min_length=1, description="as the endpoint knows it")] = (
        "openai/gpt-oss-20b"
    )
    api_key_file: Annotated[
        str,
        Meta(
            description="file with the endpoint's key; empty: at Groq's the variable GROQ_API_KEY, "
            "elsewhere no key"
        ),
    ] = ""
    reasoning_effort: Annotated[
        Literal["", "low", "medium", "high"],
        Meta(description="how long the model thinks; empty: not sent, for models that do not"),
    ] = "low"
    max_tokens: Annotated[
        int, Meta(ge=100, le=100_000, description="of one answer, thinking included")
    ] = 4000
    deadline_seconds: Annotated[
        float, Meta(gt=0, le=300, description="a model that takes longer is given up")
    ] = 30.0
    interval_seconds: Annotated[
        float, Meta(ge=60, le=86_400, description="between two insights of the same fleet or pool")
    ] = 600.0
    per_hour: Annotated[
        int,
        Meta(ge=1, le=1000, description="insights in any hour, of the whole installation"),
    ] = 20
    tokens_per_hour: Annotated[
        int,
        Meta(
            ge=0,
            description="tokens in any hour, after which the template writes; an answer that does "
            "not say its tokens counts as `max_tokens`",
        ),
    ] = 100_000
    facts_max: Annotated[
        int, Meta(ge=5, le=200, description="facts that one insight explains, worst first")
    ] = 40
    usd_per_million_prompt_tokens: Annotated[
        _Price, Meta(description="price of what the model reads; null: not known")
    ] = None
    usd_per_million_completion_tokens: Annotated[
        _Price, Meta(description="price of what it writes; null: not known")
    ] = None
