"""What happened in a namespace since its owner took it."""

import dataclasses


@dataclasses.dataclass(slots=True)
class Counters:
    """What happened since the instance took the namespace; they only grow."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    evictions: int = 0
    restores: int = 0
    restores_refused: int = 0
    restores_failed: int = 0
    restores_declined: int = 0
    restored_bytes: int = 0
    restored_cost_seconds: float = 0.0
    hit_bytes: int = 0
    put_bytes: int = 0
    tokens_served: int = 0
    tokens_computed: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """Hits by lookups; None before the first lookup."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None
