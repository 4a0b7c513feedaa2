"""A reply about a time range as points: whose, when, and the values. The same for every kind."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from schemas.api import HistoryReply
from schemas.history import AdviceHistoryReply, AnalysisHistoryReply, CacheHistoryReply

Reply: TypeAlias = HistoryReply | CacheHistoryReply | AnalysisHistoryReply


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """The values of one node, GPU, engine, cache, pool or the fleet at one instant.

    A value is a number, a word, or of a minute the fields of a Summary.
    """

    at: datetime
    whose: Mapping[str, str]
    simulated: bool
    values: Mapping[str, Any]

    @property
    def place(self) -> str:
        """As people call it: `n1 GPU-5d`, `pool chat`, `fleet`."""
        scope = self.whose.get("scope")
        if scope is None:
            return " ".join(name for name in self.whose.values() if name)
        return "fleet" if scope == "fleet" else f"{scope} {self.whose['id']}"


def points_of(reply: Reply) -> list[Point]:
    """In time order, as in the reply."""
    return [
        Point(one.at, _whose(one), one.simulated, one.values)
        for one in (reply.rows if isinstance(reply, AnalysisHistoryReply) else reply.samples)
    ]


def _whose(sample: Any) -> Mapping[str, str]:  # noqa: ANN401 - of three types
    names = ("scope", "id") if hasattr(sample, "scope") else ("node", "gpu", "engine")
    if hasattr(sample, "instance"):
        names = ("instance", "namespace")
    return {name: value for name in names if (value := getattr(sample, name)) is not None}


def as_csv(reply: Reply) -> str:
    """A line a point: instant, whose, then a column a value; of a minute its min, mean and max."""
    points = points_of(reply)
    rows = [
        {
            "at": f"{point.at:%Y-%m-%dT%H:%M:%S.%f}Z",
            **point.whose,
            "source": _source(reply, number),
            "simulated": str(point.simulated).lower(),
            **dict(_flat(point.values)),
        }
        for number, point in enumerate(points)
    ]
    return _table(rows)


def advice_as_csv(reply: AdviceHistoryReply) -> str:
    """A line a recommendation."""
    return _table(
        [
            {
                "at": f"{row.at:%Y-%m-%dT%H:%M:%S.%f}Z",
                "pool": row.life.advice.pool,
                "action": row.life.advice.action,
                "state": row.state,
                "recommendation_id": row.life.advice.recommendation_id,
                "reason": row.life.advice.reason,
                "text": row.life.advice.text,
                "closed": row.closed,
            }
            for row in reply.rows
        ]
    )


def _source(reply: Reply, number: int) -> str:
    if isinstance(reply, AnalysisHistoryReply):
        return reply.rows[number].source
    return reply.source


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{part}", value[part]) for part in ("min", "mean", "max"))
        else:
            yield name, value


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
