"""One cached entry: the value and what is known about it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import msgspec

from cache.value_file import ValueFile
from schemas.digest import Digest

_NO_META: Mapping[str, str] = MappingProxyType({})


class BareEntry(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """A key, its value, and what the cache itself must know of them: 80 bytes.

    `place` is the eviction policy's own note of where the entry stands; None: it holds it not.

    The garbage collector does not look into entries, so that its pauses do not grow with the
    cache: nothing in an entry may lead back to it.
    """

    key: str
    value: bytes | memoryview | ValueFile
    last_accessed_ns: int = 0
    access_count: int = 0
    expires_at_ns: int | None = None
    place: Any = None
    parent: str | None = None
    prefix_tokens: int | None = None

    @property
    def size_bytes(self) -> int:
        """What the entry takes from a limit: keys (its own and its parent's, UTF-8) and value.

        Computed, because a stored number would cost 40 bytes an entry.
        """
        key = self.key
        size = len(self.value) + (len(key) if key.isascii() else len(key.encode()))
        return size if self.parent is None else size + utf8_bytes(self.parent)

    def arrived(self, now_ns: int) -> None:
        """Note when it came, where that is not known."""
        self.last_accessed_ns = self.last_accessed_ns or now_ns

    def expired(self, now_ns: int) -> bool:
        """True from the instant `expires_at_ns` on."""
        return self.expires_at_ns is not None and self.expires_at_ns <= now_ns


class Entry(BareEntry, kw_only=True, eq=False, gc=False):
    """An entry with all that its writer said, and its history in the cache.

    `ttl_seconds` is what the writer asked for: None leaves the archive's TTL to the heuristic, 0
    keeps the entry out of the archive. `expires_at_ns` None = never.
    `earlier_uses`: writes and reads before it was last evicted and lost, as far as remembered.
    `extended`: another entry named it as its parent. `digest` is the value's, empty
    while nobody needed it.
    """

    digest: str = ""
    version: str = ""
    inserted_at_ns: int = 0
    ttl_seconds: float | None = None
    extended: bool = False
    earlier_uses: int = 0
    cost_seconds: float | None = None
    request_class: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = _NO_META

    @property
    def size_bytes(self) -> int:
        """Those of a bare entry, and the texts with it."""
        size = super().size_bytes
        if self.request_class or self.tags or self.meta:
            texts = (self.request_class or "", *self.tags, *self.meta, *self.meta.values())
            size += sum(map(utf8_bytes, texts))
        return size

    def arrived(self, now_ns: int) -> None:
        """Note when it came, where that is not known."""
        self.last_accessed_ns = self.last_accessed_ns or now_ns
        self.inserted_at_ns = self.inserted_at_ns or now_ns

    @property
    def value_bytes(self) -> int:
        """How long the value is."""
        return len(self.value)

    def payload(self, first: int = 0, end: int | None = None) -> bytes:
        """Bytes of the value to send. What is large in RAM gives a view: only sending copies.

        Raises:
            OSError: its file was removed or cut by somebody else.
        """
        if isinstance(self.value, ValueFile):
            return self.value.read(first, end)
        if isinstance(self.value, bytes) and first == 0 and end is None:
            return self.value
        return cast(bytes, memoryview(self.value)[first:end])

    def retire(self) -> None:
        """It no longer counts: its file loses its name, if it is one. Who reads it reads on."""
        if isinstance(self.value, ValueFile):
            self.value.retire()

    def compute_digest(self, like: str = "") -> str:
        """`digest`, computed if it is not known: slow for a large value, so in a thread.

        By the algorithm of the digest `like`.

        Raises:
            OSError: its file was removed or cut by somebody else.
        """
        if not self.digest:
            digest = Digest(like)
            if isinstance(self.value, ValueFile):
                self.value.digest(digest)
            else:
                digest.update(self.value)
            self.digest = str(digest)
        return self.digest


def utf8_bytes(text: str) -> int:
    """How long `text` is in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
