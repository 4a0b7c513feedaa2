"""What a replica costs an hour by the GPUs of its pool, where no price of it is given. Pure."""

import msgspec

from handlers.spending.gpu_prices import PricedGpus
from schemas.units import SECOND_NS

STEADY_MINUTES = 5
FORGET_NS = 15 * 60 * SECOND_NS


class DerivedPrice(msgspec.Struct, frozen=True):
    """GPUs of a replica by the price of one."""

    gpus: int
    is_given: bool
    """By the settings; else seen."""
    usd_per_gpu_hour: float
    sources: list[str]
    """Models, prices and whose they are, for people."""

    @property
    def usd_per_hour(self) -> float:
        """Of a replica: 2 GPUs at 3.99 → 7.98."""
        return self.gpus * self.usd_per_gpu_hour


class ReplicaGpus(msgspec.Struct):
    """How many GPUs a replica has, minute by minute, and what they cost.

    The pool's GPUs by its replicas, once that was the same whole number for `STEADY_MINUTES`: a
    replica that starts has GPUs before it reports. The last steady number counts until another
    is, and is forgotten when it was not seen for 15 minutes.
    """

    minute_ns: int = 0
    """The end of the last minute taken."""
    number: int = 0
    """By that minute; 0: no whole number, or not known."""
    times: int = 0
    """So many minutes on end."""
    steady: int = 0
    steady_ns: int = 0
    """When it was last seen."""
    usd_per_gpu_hour: float | None = None
    sources: list[str] = []

    def see(self, found: PricedGpus, replicas: int) -> None:
        """Take a minute of the pool's GPUs; that it was not taken before is for who calls."""
        follows = found.end_ns - self.minute_ns == 60 * SECOND_NS
        self.minute_ns = found.end_ns
        self.usd_per_gpu_hour, self.sources = found.usd_per_gpu_hour, list(found.sources)
        gpus = found.gpus or 0
        number = 0 if gpus % replicas else gpus // replicas
        self.times = self.times + 1 if follows and number == self.number else 1
        self.number = number
        if number and (number == self.steady or self.times >= STEADY_MINUTES):
            self.steady, self.steady_ns = number, found.end_ns

    def price(self, given: int | None, now_ns: int) -> DerivedPrice | None:
        """By `given` GPUs of a replica, else those seen; None: they or their price is not known."""
        gpus, seen_ns = (given, self.minute_ns) if given else (self.steady, self.steady_ns)
        usd = self.usd_per_gpu_hour
        if usd is None or not gpus or now_ns - min(seen_ns, self.minute_ns) > FORGET_NS:
            return None
        return DerivedPrice(gpus, given is not None, usd, self.sources)
