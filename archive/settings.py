"""Settings of the archive service."""

from typing import Annotated

import msgspec
from msgspec import Meta


class ArchiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where evicted entries are kept, and how."""

    folder: Annotated[
        str, Meta(description="folder of the archive; empty = `archive` in the state folder")
    ] = ""
    in_flight: Annotated[
        int, Meta(ge=1, le=256, description="evictions handled at once; each holds its value")
    ] = 16
    zstd_level: Annotated[int, Meta(ge=1, le=19, description="zstd compression level")] = 3
    min_ratio: Annotated[
        float,
        Meta(ge=1, description="original by compressed size below which a value is stored raw"),
    ] = 1.1
    sweep_interval_seconds: Annotated[
        float, Meta(gt=0, description="seconds between removals of expired and cleared objects")
    ] = 60.0
    tombstone_keep_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds a tombstone is kept; longer than an eviction can wait in its "
            "stream, or a deleted value could come back",
        ),
    ] = 8 * 86400.0
    standby_poll_seconds: Annotated[
        float, Meta(gt=0, le=3, description="seconds between tries to take over the store")
    ] = 2.0
    retry_seconds: Annotated[
        float, Meta(gt=0, description="pause after the first failure of the store; doubles")
    ] = 1.0
    retry_max_seconds: Annotated[
        float, Meta(gt=0, description="longest pause after a failure of the store")
    ] = 30.0
    probe_interval_seconds: Annotated[
        float, Meta(gt=0, description="seconds between trial writes to the store")
    ] = 5.0
    drain_seconds: Annotated[
        float, Meta(gt=0, description="longest wait at stop for evictions in flight")
    ] = 5.0

    def __post_init__(self) -> None:
        if self.retry_max_seconds < self.retry_seconds:
            raise ValueError("retry_max_seconds must not be shorter than retry_seconds")
