"""How full the streams of the installation are."""

from typing import Annotated, ClassVar

from msgspec import Meta

from schemas.message import Message
from schemas.units import Bytes, Count, Instant, Ratio, Token


class StreamMetrics(Message, frozen=True, kw_only=True):
    """One stream that refuses what is new when it is full, at one instant.

    Published by the handlers every 30 s by the process that judges the fleet, at most once.
    """

    SUBJECT: ClassVar[str] = "metrics.stream.{stream}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    stream: Annotated[Token, Meta(description="its name, like `FLEET_DEAD`")]
    observed_at: Annotated[Instant, Meta(description="when the server was asked")]
    messages: Annotated[Count, Meta(description="that it holds")]
    used_bytes: Annotated[Bytes, Meta(description="that they take, as the server counts them")]
    limit_bytes: Annotated[Bytes | None, Meta(description="its `max_bytes`; null: no limit")]
    usage_ratio: Annotated[
        Ratio | None, Meta(description="used by limit, at most 1; null: no limit")
    ]
