"""What a namespace takes in: by its configuration, its settings, and the room there is."""

from collections.abc import Sequence

from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.outbox import Outbox
from cache.settings import MIB, CacheSettings
from schemas.lmcache import LmcacheConfig


def configured(settings: CacheSettings) -> LmcacheConfig:
    """The configuration that the settings give, before anybody changes it."""
    return LmcacheConfig(
        max_size_mb=settings.max_memory_mb, eviction_policy=settings.eviction_policy
    )


class Limits:
    """Says what finds room, and holds RAM to `config`, the configuration in force."""

    def __init__(
        self, settings: CacheSettings, config: LmcacheConfig, memory: EntryStore, outbox: Outbox
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._outbox = outbox
        self.configure(config)

    def configure(self, config: LmcacheConfig) -> None:
        """Use `config` from now on; what is in RAM beyond its limit leaves by `Trimming`."""
        self.config = config
        if config.eviction_policy != self._memory.policy_name:
            self._memory.set_policy(config.eviction_policy)
        self.limit_memory()

    def limit_memory(self) -> None:
        """Lower RAM's limit to the configured one, as far as what is there allows."""
        self._memory.limit_bytes = max(self._configured_bytes, self._memory.used_bytes)

    @property
    def surplus_bytes(self) -> int:
        """What RAM holds beyond the configured limit."""
        return max(0, self._memory.used_bytes - self._configured_bytes)

    @property
    def value_limit(self) -> tuple[int, str]:
        """Largest value that is taken, in bytes, and the setting that says so."""
        settings = self._settings
        limits = [
            (settings.max_value_bytes, "cache.max_value_bytes"),
            (self._memory.limit_bytes, "max_size_mb"),
        ]
        if settings.archive_mode == "on":
            limits.append((settings.outbox_max_bytes // 2, "half of cache.outbox_max_bytes"))
        return min(limits)

    def caches(self, entry: Entry) -> bool:
        """Whether an entry like this one is kept: its prefix may be too short."""
        return (
            not self.config.enable_prefix_caching
            or entry.prefix_tokens is None
            or entry.prefix_tokens >= self.config.min_prefix_length
        )

    def keeps_chains(self, entries: Sequence[Entry]) -> bool:
        """Whether these can be put as one chain, or the configuration decides on each."""
        config = self.config
        return (
            config.enabled
            and config.enable_prefix_caching
            and config.auto_eviction
            and all(self.caches(entry) for entry in entries)
        )

    def refuses(self, size_bytes: int) -> bool:
        """Whether nothing new is kept, because what it evicts could be lost to the archive."""
        return self._settings.archive_when_full == "refuse" and not self._outbox.fits(size_bytes)

    def has_room(self, entry: Entry) -> bool:
        """Whether `entry` may return to RAM: never for an eviction that puts are refused to save.

        Nor for any, should the cache not evict by itself.
        """
        size_bytes = entry.size_bytes
        return (
            size_bytes <= self._memory.limit_bytes
            and not self.refuses(size_bytes)
            and (self.config.auto_eviction or self._room_bytes(entry.key) >= size_bytes)
        )

    def check_room(self, key: str, size_bytes: int) -> None:
        """Whether an entry of `key` finds room, should the cache not evict by itself.

        Raises:
            ValueError: it does not; the text names the ways out.
        """
        # One that is too large for any cache is refused where it is stored.
        if self.config.auto_eviction or size_bytes > self._memory.limit_bytes:
            return
        if self._room_bytes(key) < size_bytes:
            raise ValueError(
                f"the cache is full: {self._memory.used_bytes} of {self._configured_bytes} bytes, "
                "and auto_eviction is off; delete something, optimize, or raise max_size_mb"
            )

    @property
    def _configured_bytes(self) -> int:
        return max(1, int(self.config.max_size_mb * MIB))

    def _room_bytes(self, key: str) -> int:
        """What an entry of `key` may take without an eviction."""
        present = self._memory.peek(key)
        own = 0 if present is None else present.size_bytes
        return self._configured_bytes - self._memory.used_bytes + own
