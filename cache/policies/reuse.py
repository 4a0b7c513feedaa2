"""How likely a key is used again, learned from the keys like it."""

from bisect import bisect_right
from math import exp, log
from operator import mul

from schemas.units import SECOND_NS

LAST, NEW = 0, 1  # keys never used again so far: the last of its chain (often partial), any other
COUNTS, GAPS = 2, 5  # keys used again: once or more often, by the time since the use before
CLASSES = 2 + COUNTS * GAPS

_EDGES_SECONDS = [0.0] + [2 ** (half / 2) for half in range(40)]  # to 9 days, by half octaves
_STARTS_SECONDS = _EDGES_SECONDS[:-1]
STARTS_NS = [int(start * SECOND_NS) for start in _STARTS_SECONDS]
_BINS = len(_STARTS_SECONDS)
_MIDDLES = [log(0.7)] + [(half - 0.5) / 2 * log(2) for half in range(1, _BINS)]
_MIDDLE_SECONDS = [exp(middle) for middle in _MIDDLES]
_LEARN_EVERY = 8192
_FORGET_ABOVE = 1 << 17
_SNAPSHOTS = 96
_PRIOR_SHARES = (0.05, 0.3, 0.6)  # of LAST, NEW and the others used again
_PRIOR_GAP_SECONDS = 30.0
_PRIOR_KEYS = 200.0
_PRIOR_BIN_KEYS = 100.0
_SHAPE = 2.0
_POWER = 1.6
_HISTOGRAM_WEIGHT = 0.15


def class_after(rank: int, gap_seconds: float) -> int:
    """The class of a key of class `rank` that is used again: its gap under 2, 8, 32, 128 s, more.

    (NEW, 1 s) → 2, (NEW, 10 s) → 4, (4, 1 s) → 7, (7, 200 s) → 11.
    """
    octaves = int(gap_seconds).bit_length() // 2
    return (2 if rank < 2 else 2 + GAPS) + min(octaves, GAPS - 1)


_CLASS_AFTER = [
    [class_after(rank, start_seconds) for start_seconds in _STARTS_SECONDS]
    for rank in range(CLASSES)
]


class ReuseModel:
    """The worth of keeping a key, by its class and its age: uses a second to expect.

    Two estimates, both learned while running, are averaged as logarithms, the second with a
    weight of 0.15. The first is smooth:
    p / G · (1 + age / G) ** -1.6, p the share of keys used again, G the geometric mean of their
    gaps. The second is a histogram of the gaps by half octaves, corrected for keys too young to
    have shown their gap, and shrunk to a log-logistic with that p and G; its worth is the most
    uses per second of keeping over all times to keep on from that age (Gittins' index). The first
    is steady where there is little to learn from, the second sees what its form cannot express.

    Counts are halved when they reach 131,072 keys, so that the model follows its traffic. A class
    is estimated when its worth is asked for: most classes are empty most of the time.
    """

    def __init__(self) -> None:
        self._placed = [0.0] * CLASSES
        self._gaps = [[0.0] * _BINS for _ in range(CLASSES)]
        self._snapshots: list[tuple[float, list[float]]] = []
        self._keys = 0
        self._due = 0
        self._is_stale = True
        self._used = [0.0] * CLASSES
        self._logs = [0.0] * CLASSES
        self._old = [[0.0] * CLASSES] * _BINS
        self.worths: list[list[float] | None] = [None] * CLASSES
        self.note_if_due(0.0)

    def place(self, rank: int, keys: int) -> None:
        """`keys` keys came into a class."""
        self._placed[rank] += keys
        self._keys += keys

    def use(self, rank: int, gap_seconds: float, keys: int) -> int:
        """`keys` keys of a class were used again after a gap: their class from now on."""
        number = bisect_right(_STARTS_SECONDS, gap_seconds) - 1
        self._gaps[rank][number] += keys
        after = _CLASS_AFTER[rank][number]
        self._placed[after] += keys
        self._keys += keys
        return after

    def worth(self, rank: int, age_seconds: float) -> float:
        """Uses a second to expect of a key of this class, last used that long ago."""
        worths = self.worths[rank] or self.estimate(rank)
        return worths[bisect_right(_STARTS_SECONDS, age_seconds) - 1]

    def note_if_due(self, now_seconds: float) -> None:
        """Note how many keys came, now and then: what is worth how much is to be learned anew."""
        if self._keys < self._due:
            return
        self._is_stale = True
        self._due = self._keys + min(self._keys + 64, _LEARN_EVERY)
        self._snapshots.append((now_seconds, self._placed.copy()))
        if len(self._snapshots) > _SNAPSHOTS:
            # Old ones further and further apart: as exact as the widening bins need.
            half = _SNAPSHOTS // 2
            self._snapshots = self._snapshots[:half:2] + self._snapshots[half:]
        if sum(self._placed) > _FORGET_ABOVE:
            self._forget()

    def _forget(self) -> None:
        self._placed = [keys / 2 for keys in self._placed]
        self._gaps = [[keys / 2 for keys in gaps] for gaps in self._gaps]
        self._snapshots = [(at, [keys / 2 for keys in row]) for at, row in self._snapshots]

    def learn_if_due(self, now_seconds: float) -> None:
        """Learn from what was noted since the last time; before `worth` is asked for.

        With all classes in use 1 ms, at most every 8,192 keys placed.
        """
        if not self._is_stale:
            return
        self._is_stale = False
        self._used = [sum(gaps) for gaps in self._gaps]
        self._logs = [sum(map(mul, gaps, _MIDDLES)) for gaps in self._gaps]
        self._old = self._placed_before(now_seconds)
        self.worths = [None] * CLASSES

    def estimate(self, rank: int) -> list[float]:
        """The worths of a class, one for each bin of ages; from then on in `worths`, too."""
        used, logs = self._used, self._logs
        typical = (sum(logs) + 10 * log(_PRIOR_GAP_SECONDS)) / (sum(used) + 10)
        share = self._share(_pool(rank), used)
        columns = (LAST, NEW) if rank < 2 else range(2 + (rank - 2) % GAPS, CLASSES, GAPS)
        gap = _mean_gap(columns, logs, used, typical)
        own_gap = _mean_gap((rank,), logs, used, typical)
        histogram = self._by_histogram(rank, self._share(_row(rank), used), own_gap, self._old)
        worths = self.worths[rank] = [
            max(by_histogram, 1e-30) ** _HISTOGRAM_WEIGHT
            * (share / gap * (1 + middle / gap) ** -_POWER) ** (1 - _HISTOGRAM_WEIGHT)
            for by_histogram, middle in zip(histogram, _MIDDLE_SECONDS, strict=True)
        ]
        return worths

    def _share(self, ranks: range, used: list[float]) -> float:
        """The share of the keys of `ranks` that is used again."""
        again = sum(used[rank] for rank in ranks) + _PRIOR_KEYS * _PRIOR_SHARES[min(ranks[0], 2)]
        return again / (sum(self._placed[rank] for rank in ranks) + _PRIOR_KEYS)

    def _placed_before(self, now_seconds: float) -> list[list[float]]:
        """For each bin: how many keys of each class are old enough to have shown such a gap."""
        rows = []
        newest = len(self._snapshots) - 1
        for start_seconds in _STARTS_SECONDS:
            while newest >= 0 and self._snapshots[newest][0] > now_seconds - start_seconds:
                newest -= 1
            rows.append(self._snapshots[newest][1] if newest >= 0 else [0.0] * CLASSES)
        return rows

    def _by_histogram(
        self, rank: int, share: float, gap: float, old: list[list[float]]
    ) -> list[float]:
        """Gittins' index at each bin, from the hazard of a use in each bin."""
        placed = self._placed[rank]
        alive, past, prior_before = 1.0, 0.0, 0.0
        held, uses = [0.0], [0.0]
        for number, keys in enumerate(self._gaps[rank]):
            width = _EDGES_SECONDS[number + 1] - _EDGES_SECONDS[number]
            at_risk = max((placed - past) * old[number][rank] / placed, keys) if placed else keys
            past += keys
            odds = (_EDGES_SECONDS[number + 1] / gap) ** _SHAPE
            prior = share * odds / (1 + odds)
            prior_hazard = (prior - prior_before) / (1 - prior_before)
            hazard = min(
                0.999, (keys + _PRIOR_BIN_KEYS * prior_hazard) / (at_risk + _PRIOR_BIN_KEYS)
            )
            prior_before = prior
            held.append(held[-1] + width * alive * (1 - hazard / 2))
            uses.append(uses[-1] + alive * hazard)
            alive *= 1 - hazard
        return _steepest(held, uses)


def _pool(rank: int) -> range:
    """The classes that share one share of keys used again."""
    return range(rank, rank + 1) if rank < 2 else range(2, CLASSES)


def _row(rank: int) -> range:
    """The classes used as often as `rank`."""
    if rank < 2:
        return range(rank, rank + 1)
    first = 2 + (rank - 2) // GAPS * GAPS
    return range(first, first + GAPS)


def _mean_gap(
    ranks: range | tuple[int, ...], logs: list[float], used: list[float], typical: float
) -> float:
    """Geometric mean of the gaps after keys of `ranks`, in seconds."""
    total = sum(logs[rank] for rank in ranks) + 20 * typical
    return exp(total / (sum(used[rank] for rank in ranks) + 20))


def _steepest(held: list[float], uses: list[float]) -> list[float]:
    """From each point but the last: the steepest slope to a later one; by their convex hull."""
    slopes = [0.0] * (len(held) - 1)
    hull = [len(held) - 1]
    for start in range(len(held) - 2, -1, -1):

        def slope(end: int, start: int = start) -> float:
            run = held[end] - held[start]
            return (uses[end] - uses[start]) / run if run > 0 else 0.0

        while len(hull) > 1 and slope(hull[-2]) >= slope(hull[-1]):
            hull.pop()
        slopes[start] = slope(hull[-1])
        hull.append(start)
    return slopes
