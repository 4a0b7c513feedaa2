"""Whether new replicas of a pool bring GPUs of their own, by what became of earlier ones. Pure."""

import msgspec

from schemas.units import SECOND_NS

STEADY_NS = 60 * SECOND_NS
"""So long beyond the GPUs' window both numbers must have stood still: replicas that start have
GPUs before they report."""


class GpuGrowth(msgspec.Struct):
    """What the pool's GPUs were by its replicas, and what they became as those were added.

    Of instants at which both had been the same for `STEADY_NS`. More replicas on as many GPUs
    share them, and so do those that are more than their GPUs. GPUs that come with replicas, as
    many as those at least, are their own. Fewer replicas tell nothing: one that is silent for a
    while and comes back finds its GPUs as they were.
    """

    replicas: int = 0
    gpus: int = 0
    """At the last change that told something; 0: none yet."""
    shares: bool = False
    """New replicas were found on the GPUs of others."""
    seen: tuple[int, int] = (0, 0)
    since_ns: int = 0
    """Since when the replicas and GPUs are those of `seen`."""

    def is_shared(self, replicas: int, gpus: int) -> bool:
        """Whether more replicas would share these GPUs, or may, as far as is known by now.

        Those that came and brought none yet are waited for.
        """
        came, came_gpus = replicas - self.replicas, gpus - self.gpus
        return self.shares or (self.gpus > 0 and came > max(0, came_gpus))

    def see(self, replicas: int, gpus: int, now_ns: int, window_ns: int) -> None:
        """Take what there is now; `window_ns`: for so long a GPU that is gone still counts."""
        if (replicas, gpus) != self.seen:
            self.seen, self.since_ns = (replicas, gpus), now_ns
        elif now_ns - self.since_ns >= window_ns + STEADY_NS:
            self._learn(replicas, gpus)

    def _learn(self, replicas: int, gpus: int) -> None:
        came, came_gpus = replicas - self.replicas, gpus - self.gpus
        if not self.gpus or came_gpus > 0:
            self.shares = gpus < replicas or came_gpus < came
        elif came > 0:
            self.shares = came_gpus == 0 or gpus < replicas
        elif came == 0 and came_gpus:
            self.shares = gpus < replicas  # the same replicas were put on other GPUs
        elif not came_gpus:
            return
        self.replicas, self.gpus = replicas, gpus
