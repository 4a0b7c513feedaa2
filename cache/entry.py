"""One cached entry: the value and what is known about it."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

_NO_META: Mapping[str, str] = MappingProxyType({})


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A key, its value, and its history in the cache.

    `size_bytes` counts key (UTF-8), value, and the texts that came with them; it is what the
    entry takes from a limit. `ttl_seconds` is what the writer asked for: None leaves the archive's
    TTL to the heuristic, 0 keeps the entry out of the archive. `expires_at_ns` None = never.
    """

    key: str
    value: bytes
    version: str = ""
    inserted_at_ns: int = 0
    last_accessed_ns: int = 0
    access_count: int = 0
    expires_at_ns: int | None = None
    ttl_seconds: float | None = None
    prefix_tokens: int | None = None
    parent: str | None = None
    cost_seconds: float | None = None
    request_class: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NO_META)
    size_bytes: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        size = len(self.key.encode()) + len(self.value)
        for text in (self.parent, self.request_class, *self.tags, *self.meta, *self.meta.values()):
            if text is not None:
                size += len(text.encode())
        self.size_bytes = size

    def expired(self, now_ns: int) -> bool:
        """True from the instant `expires_at_ns` on."""
        return self.expires_at_ns is not None and self.expires_at_ns <= now_ns
