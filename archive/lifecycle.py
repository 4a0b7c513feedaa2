"""Coarse lifecycle rules for the bucket. Pure: rules in, rules and words out.

They spare the sweep its work and remove what no archiver is left to remove; what may be read is
decided by each entry's exact expiry alone. An object named `<class>-…` holds nothing, value or
tombstone, that must live longer than its class from the moment it is written.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from schemas.lifecycle import ComponentState
from schemas.units import SECOND_NS

CLASS_DAYS = {"1d": 1, "3d": 3, "7d": 7, "30d": 30, "90d": 90}
FOREVER = "none"
"""Class of what lives longer than any class, or has no expiry: no rule removes it."""
SPARE_DAYS = 1
"""A rule waits so much longer than its class: the clocks of archiver and server may differ."""
DAY_SECONDS = 86400.0

Rule = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class LifecycleReport:
    """How the rules on the bucket are, for health."""

    state: ComponentState
    text: str


def ttl_class(life_seconds: float | None) -> str:
    """The smallest class that is at least this long; None = never expires.

    Worked: 3600 → 1d; 86,400 → 1d; 86,401 → 3d; 100 days → none.
    """
    if life_seconds is not None:
        for name, days in CLASS_DAYS.items():
            if life_seconds <= days * DAY_SECONDS:
                return name
    return FOREVER


def lasts_until_ns(name: str, written_ns: int) -> float:
    """Until when no rule removes the object of this name that was written then."""
    days = CLASS_DAYS.get(name.partition("-")[0])
    return math.inf if days is None else written_ns + days * DAY_SECONDS * SECOND_NS


def wanted_rules(objects: str) -> list[Rule]:
    """One rule for each class below the prefix `objects`, and one for what is left behind."""
    rules = [
        {
            "ID": f"{_own(objects)}{name}",
            "Filter": {"Prefix": f"{objects}{name}-"},
            "Status": "Enabled",
            "Expiration": {"Days": days + SPARE_DAYS},
        }
        for name, days in CLASS_DAYS.items()
    ]
    leftovers = {
        "ID": f"{_own(objects)}uploads",
        "Filter": {"Prefix": objects},
        "Status": "Enabled",
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1 + SPARE_DAYS},
    }
    return [*rules, leftovers]


def merged(existing: Sequence[Rule], objects: str) -> list[Rule] | None:
    """All rules of the bucket with ours among them; None where ours are there as they should be.

    Ours are known by their ID; those of others come back as they are.
    """
    ours = [rule for rule in existing if str(rule.get("ID", "")).startswith(_own(objects))]
    wanted = wanted_rules(objects)
    if sorted(map(_comparable, ours)) == sorted(map(_comparable, wanted)):
        return None
    return [*(rule for rule in existing if rule not in ours), *wanted]


def dangerous(existing: Sequence[Rule], objects: str) -> list[str]:
    """IDs of others' rules that remove or move away our objects, whatever life they have left."""
    return [
        str(rule.get("ID", "(without ID)"))
        for rule in existing
        if not str(rule.get("ID", "")).startswith(_own(objects))
        and rule.get("Status") == "Enabled"
        and (rule.get("Expiration") or rule.get("Transitions"))
        and not _has_tags(rule)
        and _overlap(_prefix(rule), objects)
    ]


def _own(objects: str) -> str:
    return f"resource-agent {objects} "


def _prefix(rule: Rule) -> str:
    """What the rule's objects begin with; servers write it in three ways."""
    chosen = rule.get("Filter", {})
    return str(chosen.get("And", chosen).get("Prefix") or rule.get("Prefix") or "")


def _has_tags(rule: Rule) -> bool:
    chosen = rule.get("Filter", {})
    return "Tag" in chosen or bool(chosen.get("And", {}).get("Tags"))


def _overlap(prefix: str, objects: str) -> bool:
    return prefix.startswith(objects) or objects.startswith(prefix)


def _comparable(rule: Rule) -> str:
    kept = ("ID", "Status", "Expiration", "AbortIncompleteMultipartUpload")
    return repr([*(rule.get(name) for name in kept), _prefix(rule)])
