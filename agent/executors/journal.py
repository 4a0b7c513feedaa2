"""What the stream says about all recent advice, kept up to date."""

from collections.abc import Callable, Iterator

from schemas.life import Life, Run, decode, earlier_advice
from schemas.protocols import Delivery
from schemas.scaling import Recommendation
from schemas.units import SECOND_NS, to_ns

KEEP_NS = 48 * 3600 * SECOND_NS
"""How far back it is read at the start; longer than any advice stands."""
LATE_NS = 600 * SECOND_NS
"""A request by a clock that goes otherwise is still answered after so long."""


class Journal:
    """The lives of advice that stands or has an execution open, by id."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}

    def take(self, delivery: Delivery) -> None:
        """The next message of the stream; raises what msgspec does where it cannot be read."""
        message = decode(delivery)
        if isinstance(message, Recommendation):
            self.lives.setdefault(message.recommendation_id, Life(advice=message))
        earlier = self.lives.get(earlier_advice(message) or "")
        if earlier is not None:
            earlier.add(message)

    def standing(self, now_ns: int) -> list[Life]:
        """The advice that has not expired; what has, and has nothing open, is forgotten."""
        standing = []
        for name, life in list(self.lives.items()):
            if now_ns < to_ns(life.advice.expires_at):
                standing.append(life)
            elif now_ns - to_ns(life.advice.expires_at) > LATE_NS and all(
                run.ended is not None for run in life.runs.values()
            ):
                del self.lives[name]
        return standing

    def runs(self, wanted: Callable[[Run], bool]) -> Iterator[tuple[Life, Run]]:
        """Executions in the order of their advice."""
        for life in list(self.lives.values()):
            for run in list(life.runs.values()):
                if wanted(run):
                    yield life, run
