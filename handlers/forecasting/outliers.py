"""Which values a series can have: one beyond all that came is not believed, or forgotten. Pure."""

from collections.abc import Sequence

import msgspec

WILD = 1000.0
"""So many times what a series ever was, a value is not believed."""
BELIEVED_AFTER = 3
"""Unless so many come one after the other: then it is the series that changed."""
FORGOTTEN_AFTER = 60
"""Steps without anything like a lone value, until that is taken for an error."""


class Scale(msgspec.Struct):
    """How large the values of a series are, by the highest one that another one bore out.

    A forecaster that takes in one value of 10¹⁵ is wrong for hours: means forget slowly, and
    beside such an error no later one is seen. O(1) a step.
    """

    highest: float = 0.0
    is_confirmed: bool = False
    """A later value was like it: not `WILD` times less."""
    wild: int = 0
    """Values in a row that were not believed."""
    lower: list[float] = []
    """What came since the highest, while nothing was like it."""

    @property
    def is_doubtful(self) -> bool:
        """The highest value stands alone, and what came since is nothing like it."""
        return bool(self.lower)

    def believes(self, value: float) -> bool:
        """Take a value, at least 0; False: it is no more than a gap."""
        if value > self.highest * WILD and self.is_confirmed:
            self.wild += 1
            if self.wild < BELIEVED_AFTER:
                return False
            self.is_confirmed = False
        self.wild = 0
        if value > self.highest:
            # Of the first values none says more than the others, so the highest counts.
            self.is_confirmed = self.highest > 0.0 and value <= self.highest * WILD
            self.highest, self.lower = value, []
        elif value * WILD >= self.highest:
            self.is_confirmed = self.highest > 0.0
            self.lower = []
        elif not self.is_confirmed:
            self.lower.append(value)
        return True

    def anew(self) -> Sequence[float]:
        """What came since a value that was an error, once that is clear; the scale is of these.

        Clear: of what came since nothing was like it, in some values above 0, or in many.
        """
        above = [value for value in self.lower if value > 0.0]
        if len(above) < BELIEVED_AFTER and len(self.lower) < FORGOTTEN_AFTER:
            return ()
        since = self.lower
        self.highest, self.is_confirmed, self.wild, self.lower = 0.0, False, 0, []
        for value in since:
            self.believes(value)
        return since
