"""What a GPU costs an hour: a dated table of list prices, overridden by settings."""

import functools
import re
from datetime import date
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.labels import FrozenLabels, LabelName, frozen

JOULES_PER_KWH = 3.6e6
MAX_KNOWN = 1 << 14


class PriceRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price and its GPUs: those that match each of `gpu`, `node`, `pool` and `labels`."""

    gpu: Annotated[
        str,
        Meta(description="regular expression, searched in the model's name; empty: every model"),
    ] = ""
    node: Annotated[str, Meta(description="names of nodes, `*` for any characters")] = "*"
    pool: Annotated[
        str, Meta(description="names of pools, `*` for any characters; `*` alone: in none, too")
    ] = "*"
    labels: Annotated[
        dict[LabelName, str],
        Meta(
            description="name → values of a node's label, `*` for any characters; each must be "
            "there and match"
        ),
    ] = {}
    usd_per_gpu_hour: Annotated[float, Meta(ge=0, le=1000, description="of one whole GPU")]
    source: Annotated[str, Meta(description="whose price")] = "settings"
    as_of: Annotated[
        Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None,
        Meta(description="the day it was looked up; null: not known"),
    ] = None

    def __hash__(self) -> int:
        # A table has no hash of its own.
        return hash((self.gpu, self.node, self.pool, frozen(self.labels), self.usd_per_gpu_hour))

    def __post_init__(self) -> None:
        try:
            re.compile(self.gpu)
        except re.error as error:
            raise ValueError(
                f"price for gpu {self.gpu!r}: no regular expression: {error}"
            ) from None
        try:
            date.fromisoformat(self.as_of or "2000-01-01")
        except ValueError:
            raise ValueError(f"price for gpu {self.gpu!r}: as_of {self.as_of} is no day") from None


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What GPUs and their energy cost."""

    rules: Annotated[
        tuple[PriceRule, ...],
        Meta(description="your prices; the first that matches counts, then the built-in ones"),
    ] = ()
    built_in: Annotated[
        bool, Meta(description="use the built-in on-demand prices where no rule matches")
    ] = True
    usd_per_kwh: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="of energy, added to the GPU-hour; null: that includes it"),
    ] = None
    pue: Annotated[
        float, Meta(ge=1, le=5, description="energy of the facility by that of its machines")
    ] = 1.0


def _listed(gpu: str, usd: float, source: str, as_of: str | None) -> PriceRule:
    return PriceRule(gpu=gpu, usd_per_gpu_hour=usd, source=source, as_of=as_of)


# On demand, a GPU-hour. `\b` keeps a GH200 from being taken for an H200. Models without a fresh
# figure (MI300X, MI325X, GH200) are left out: their price is unknown until a rule says it.
BUILT_IN = (
    _listed(r"\bB300\b", 7.50, "between Akash 6.00 and RunPod 7.89", "2026-08-19"),
    _listed(r"\bB200\b", 6.69, "Lambda, 8 GPUs", "2026-09-20"),
    _listed(r"\bH200\b", 5.00, "between Civo 3.45 and CoreWeave 6.31", "2026-10-24"),
    _listed(r"\bH100 NVL\b", 3.19, "RunPod, secure cloud", "2026-11-09"),
    _listed(r"\bH100 PCIe\b", 2.89, "RunPod, secure cloud", "2026-11-09"),
    _listed(r"\bH100\b", 3.99, "Lambda, 8 GPUs with SXM", "2026-09-25"),
    _listed(r"\bA100\b.*\b80GB\b", 2.79, "Lambda", "2026-09-20"),
    _listed(r"\bA100\b.*\b40GB\b", 1.99, "Lambda", "2026-11-09"),
    _listed(r"\bL40S\b", 1.40, "RunPod", "2026-03-01"),
    _listed(r"\bRTX PRO 6000\b", 1.75, "Akash", "2026-09-20"),
    _listed(r"\bL4\b", 0.80, "AWS g6.xlarge", None),
    _listed(r"\bA10G\b", 1.01, "AWS g5.xlarge", None),
    _listed(r"\bT4\b", 0.53, "AWS g4dn.xlarge", None),
)


class PriceList:
    """Finds the price of a GPU; O(rules) once for each model, node, pool and set of labels.

    `NVIDIA H100 80GB HBM3` → 3.99, `NVIDIA H100 PCIe` → 2.89, `AMD Instinct MI300X` → None.
    """

    def __init__(self, settings: PriceSettings) -> None:
        built_in = BUILT_IN if settings.built_in else ()
        rules: tuple[PriceRule, ...] = (*settings.rules, *built_in)
        self._rules = [(re.compile(rule.gpu, re.IGNORECASE), rule) for rule in rules]
        per_kwh = settings.usd_per_kwh
        self.usd_per_joule = None if per_kwh is None else per_kwh * settings.pue / JOULES_PER_KWH
        self._known = functools.lru_cache(maxsize=MAX_KNOWN)(self._find)

    def find(
        self, gpu: str | None, node: str, pool: str | None, labels: FrozenLabels
    ) -> PriceRule | None:
        """The first rule that matches; None: the price is unknown, which is not 0."""
        return self._known(gpu, node, pool, labels)

    def differs(self, gpu: str | None) -> bool:
        """Whether the price of this model goes by node, pool or labels, too."""
        for pattern, rule in self._rules:
            if not rule.gpu or (gpu is not None and pattern.search(gpu)):
                return (rule.node, rule.pool) != ("*", "*") or bool(rule.labels)
        return False

    def _find(
        self, gpu: str | None, node: str, pool: str | None, labels: FrozenLabels
    ) -> PriceRule | None:
        known = dict(labels)
        for pattern, rule in self._rules:
            if (
                (not rule.gpu or (gpu is not None and pattern.search(gpu)))
                and fnmatchcase(node, rule.node)
                and (rule.pool == "*" or (pool is not None and fnmatchcase(pool, rule.pool)))
                and all(
                    name in known and fnmatchcase(known[name], pattern_of_value)
                    for name, pattern_of_value in rule.labels.items()
                )
            ):
                return rule
        return None
