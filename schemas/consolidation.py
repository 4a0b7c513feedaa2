"""How the work of a pool could be packed onto fewer nodes."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.changes import Move
from schemas.message import Message, Simulated
from schemas.units import Count, Instant, Number, Seconds, Token

_NO_MOVES = "null: no moves"


class Consolidation(Message, frozen=True, kw_only=True):
    """A plan to empty nodes of a pool, replayed on what was measured; empty: there is none.

    Published by the handlers every ten minutes for each pool of two nodes with GPUs and more.
    Advice to carry it out (`recommendation.consolidate`) comes when it saves enough, for long
    enough; then this is the plan that stands.
    """

    SUBJECT: ClassVar[str] = "analysis.consolidation.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Literal["pool"], Meta(description="what `id` names")] = "pool"
    id: Annotated[Token, Meta(description="`pool` of the metrics")]
    decided_at: Annotated[Instant, Meta(description="when, by the server's clock")]
    history_seconds: Annotated[Seconds, Meta(description="so much was replayed")]
    nodes: Annotated[Count, Meta(description="with GPUs that work, and a load that is known")]
    nodes_after: Annotated[Count, Meta(description="of these after the moves")]
    left_out: Annotated[
        dict[str, Count],
        Meta(description="nodes with GPUs that are not in the plan, by the reason"),
    ]
    moves: Annotated[list[Move], Meta(description="in order; empty: no node can be emptied")]
    saving_usd_per_hour: Annotated[
        Number | None, Meta(description="of all moves; null: a node without a price, or no moves")
    ] = None
    gpu_memory_peak_ratio: Annotated[
        Number | None,
        Meta(description=f"of a GPU that takes work, highest of the replay; {_NO_MOVES}"),
    ] = None
    gpu_busy_peak_ratio: Annotated[
        Number | None, Meta(description=f"activity of such a GPU, likewise; {_NO_MOVES}")
    ] = None
    host_memory_peak_ratio: Annotated[
        Number | None, Meta(description=f"of a node that takes work, likewise; {_NO_MOVES}")
    ] = None
    text: Annotated[str, Meta(description="for people")] = ""
    simulated: Simulated = False


class ConsolidationsReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last plan of each pool."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Consolidation], Meta(description="what saves most first; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""
