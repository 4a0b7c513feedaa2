"""How many replicas are advised at once by the load. Pure."""

import math

from handlers.scaling.pools import Last
from handlers.settings import ScalingSettings
from schemas.units import SECOND_NS, to_ns


def most_at_once(
    settings: ScalingSettings, replicas: int, last: Last | None, executed_ns: int, now_ns: int
) -> int:
    """The most that load asks for: a queue tells that there is too much, not how much.

    A pool short by a tenth has a queue, too, and it grows until more replicas serve. HPA's
    default policy, without its 15 s, as new replicas report only when they serve: 1 → 5,
    2 → 6, 10 → 20; never below `min_replicas`.

    Of those that there were before the `last` advice, while what that ordered may still start:
    of 4 → 8 the first that serves tells nothing of the other three, and 5 → 10 would order them
    twice. `executed_ns`: when advice was last carried out; 0: not of late.
    """
    if last is not None and last.advice.action == "scale_up":
        is_ordered = last.is_standing or executed_ns >= to_ns(last.advice.decided_at)
        is_starting = may_start(settings, last, executed_ns, now_ns)
        if is_ordered and is_starting and replicas < last.advice.replicas_to:
            replicas = min(replicas, last.advice.replicas_from)
    by_ratio = math.ceil(round(replicas * settings.up_most_ratio, 9))
    return max(by_ratio, replicas + settings.up_most_replicas, settings.min_replicas)


def may_start(settings: ScalingSettings, last: Last, executed_ns: int, now_ns: int) -> bool:
    """Whether replicas of this advice, or of what was carried out, may not serve yet."""
    begin_ns = max(to_ns(last.advice.decided_at), executed_ns)
    return now_ns - begin_ns < settings.startup_lead_seconds * SECOND_NS
