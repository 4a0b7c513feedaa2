"""What advice changes, where that is not a number of replicas: caches, GPUs, places."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.units import Count, Number, Ratio, Token

CacheCause = Literal["off", "thrash", "ttl_short", "ttl_long", "nearly_full", "low_hit_ratio"]


class CacheChange(msgspec.Struct, frozen=True, kw_only=True):
    """One thing about one cache that costs hits or RAM, and what changing it is expected to bring.

    `expected` is what the signal would have been over the window that was measured: a bound from
    counters, not a promise. null: the counters do not tell.
    """

    instance: Annotated[Token, Meta(description="`instance` of CacheMetrics")]
    cause: Annotated[
        CacheCause,
        Meta(
            description="`off`: switched off; `thrash`: what it evicts is asked for again; "
            "`ttl_short`: what has expired is asked for again; `ttl_long`: RAM is held by what is "
            "not read any more; `nearly_full`: it evicts for want of room; `low_hit_ratio`: few "
            "lookups find something"
        ),
    ]
    text: Annotated[str, Meta(description="what to change, for people")]
    signal: Annotated[
        Literal["hit_ratio", "held_bytes"],
        Meta(description="what the change is for; `held_bytes`: RAM held in vain, on average"),
    ]
    now: Annotated[Number | None, Meta(description="over the window; null: not measured")]
    expected: Annotated[Number | None, Meta(description="after the change; null: not known")]
    formula: Annotated[
        str, Meta(description="how `expected` was worked out, with its numbers; empty: not known")
    ] = ""


class GpuChange(msgspec.Struct, frozen=True, kw_only=True):
    """A cheaper model for all GPUs of one model in a pool, and how what they need fits it.

    Needed is the p99 of the GPU that needs most, with the headroom of the settings.
    """

    gpu_from: Annotated[str, Meta(description="`name` of GpuMetrics")]
    gpu_to: Annotated[str, Meta(description="as a driver writes it, of `handlers.gpu_models`")]
    gpus: Annotated[Count, Meta(description="how many of it work")]
    memory_needed_bytes: Annotated[Number, Meta(description="at most, of one GPU")]
    memory_bytes: Annotated[Number, Meta(description="of one of the new model")]
    memory_needed_bytes_per_second: Annotated[Number, Meta(description="bandwidth, of one GPU")]
    memory_bytes_per_second: Annotated[Number, Meta(description="bandwidth of the new model")]
    tensor_needed_flops: Annotated[Number, Meta(description="of one GPU")]
    tensor_flops: Annotated[Number, Meta(description="of the new model, dense")]
    usd_per_hour_from: Annotated[Number, Meta(description="of all of them")]
    usd_per_hour_to: Annotated[Number, Meta(description="of as many of the new model")]
    source: Annotated[str, Meta(description="of the figures and the price of the new model")]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one GPU goes to another GPU of the same model, in the order of the list."""

    node: Annotated[Token, Meta(description="where it runs now")]
    gpu: Annotated[Token, Meta(description="`gpu` of GpuMetrics there")]
    to_node: Annotated[Token, Meta(description="where it is to run")]
    to_gpu: Annotated[Token, Meta(description="`gpu` of GpuMetrics there")]
    memory_bytes: Annotated[Number, Meta(description="that it held on the GPU at most")]
    busy_ratio: Annotated[Ratio, Meta(description="how busy it kept the GPU at most")]
    saving_usd_per_hour: Annotated[
        Number | None,
        Meta(description="of the node that it empties; 0: it empties none; null: no price"),
    ]
