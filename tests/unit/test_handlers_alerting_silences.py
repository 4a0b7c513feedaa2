"""The silence upon an alert is the one that a look at each of them finds."""

import random
from fnmatch import fnmatchcase

import pytest

from handlers.alerting.silences import Silences
from schemas.alerts import Silence
from schemas.analysis import Alert, Scope
from schemas.units import SECOND_NS, instant, to_ns

AT = instant(100 * SECOND_NS)
IDS = ("n1", "n2", "n10", "[1]", "all", "chat")
PATTERNS = (*IDS, "*", "n*", "n?", "[n]1", "[", "*0")
RULES = ("*", "gpu_*", "gpu_hot", "node_stale", "[gn]*")
SCOPES: tuple[Scope, ...] = ("node", "pool", "fleet")


def silence(number: int, begin: int, end: int, **fields: str | None) -> Silence:
    begins, ends = instant(begin * SECOND_NS), instant(end * SECOND_NS)
    return Silence(silence_id=f"s{number}", starts_at=begins, ends_at=ends, author="a", **fields)  # type: ignore[arg-type]  # patterns


def alert(rule: str, scope: Scope, id_: str) -> Alert:
    return Alert(
        transition="raised",
        severity="info",
        scope=scope,
        id=id_,
        rule=rule,
        alert_id="a",
        text="",
        metric="m",
        value=None,
        threshold=0.0,
        clear_threshold=0.0,
        for_seconds=0.0,
        raised_at=AT,
        decided_at=AT,
    )


def by_each(silences: list[Silence], of: Alert, ns: int) -> str | None:
    """As the description of a silence has it."""
    active = [
        one
        for one in silences
        if one.scope in {None, of.scope}
        and to_ns(one.starts_at) <= ns < to_ns(one.ends_at)
        and fnmatchcase(of.rule.split("-", 1)[0], one.rule)
        and fnmatchcase(of.id, one.id)
    ]
    last = max(active, key=lambda one: (one.ends_at, one.silence_id), default=None)
    return None if last is None else last.silence_id


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_one_that_a_look_at_each_finds(seed: int) -> None:
    rng = random.Random(seed)
    silences = []
    for number in range(rng.randrange(1, 40)):
        begin = rng.randrange(10)
        fields = {"rule": rng.choice(RULES), "id": rng.choice(PATTERNS)}
        end = begin + rng.randrange(1, 6)
        scope = rng.choice((None, *SCOPES))
        silences.append(silence(number, begin, end, scope=scope, **fields))
    found = Silences(silences)

    for second in (*range(18), 3, 9):  # and back: processes ask for their own instants
        for rule in ("gpu_hot-GPU-1", "node_stale", "host_full-x"):
            for scope in SCOPES:
                for id_ in IDS:
                    of, ns = alert(rule, scope, id_), second * SECOND_NS
                    assert found.upon(of, ns) == by_each(silences, of, ns)


def test_the_next_edge_is_a_begin_or_an_end() -> None:
    found = Silences([silence(1, 5, 9), silence(2, 7, 8)])

    edges = [found.next_edge_ns(second * SECOND_NS) / SECOND_NS for second in (0, 5, 7, 8, 9)]

    assert edges == [5, 7, 8, 9, float("inf")]
    assert Silences([]).next_edge_ns(0) == float("inf")
