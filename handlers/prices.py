"""What a GPU costs an hour: a dated table of list prices, overridden by settings."""

import functools
import re
from collections.abc import Callable
from datetime import date
from fnmatch import translate
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from schemas.labels import FrozenLabels, LabelName, frozen

JOULES_PER_KWH = 3.6e6
MAX_KNOWN = 1 << 15
"""More than there are nodes: what is looked up in turn must not push out what comes next."""
MAX_MODELS = 1024

Matcher: TypeAlias = Callable[[str], object]
"""Whether a name is one of a pattern; None: it is not."""


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


class _Candidate(NamedTuple):
    """A rule for a model, and what a GPU's place must match; None: any does."""

    rule: PriceRule
    is_node: Matcher | None
    is_pool: Matcher | None
    labels: tuple[tuple[str, Matcher], ...]

    @property
    def is_for_all(self) -> bool:
        """Wherever the GPU is."""
        return self.is_node is None and self.is_pool is None and not self.labels


class _OfModel(NamedTuple):
    """The rules that may be those of a GPU of one model, up to one that is for all of them."""

    candidates: tuple[_Candidate, ...]
    by_node: bool
    """Whether one of them asks for the node."""
    by_pool: bool
    names: frozenset[str]
    """Of the labels that they ask for."""


class PriceList:
    """Finds the price of a GPU; O(rules) once for each model and place, as far as the rules ask.

    `NVIDIA H100 80GB HBM3` → 3.99, `NVIDIA H100 PCIe` → 2.89, `AMD Instinct MI300X` → None.
    """

    def __init__(self, settings: PriceSettings) -> None:
        built_in = BUILT_IN if settings.built_in else ()
        rules: tuple[PriceRule, ...] = (*settings.rules, *built_in)
        self._rules = [(re.compile(rule.gpu, re.IGNORECASE), rule) for rule in rules]
        per_kwh = settings.usd_per_kwh
        self.usd_per_joule = None if per_kwh is None else per_kwh * settings.pue / JOULES_PER_KWH
        self._of_model = functools.lru_cache(maxsize=MAX_MODELS)(self._rules_of_model)
        self._known = functools.lru_cache(maxsize=MAX_KNOWN)(self._find)

    def find(
        self, gpu: str | None, node: str, pool: str | None, labels: FrozenLabels
    ) -> PriceRule | None:
        """The first rule that matches; None: the price is unknown, which is not 0."""
        of_model = self._of_model(gpu)
        if not of_model.candidates:
            return None
        first = of_model.candidates[0]
        if first.is_for_all:
            return first.rule
        # Of a fleet of thousands few places differ in what the rules ask for.
        names = of_model.names
        return self._known(
            gpu,
            node if of_model.by_node else "",
            pool if of_model.by_pool else None,
            tuple([one for one in labels if one[0] in names]) if names else (),
        )

    def differs(self, gpu: str | None) -> bool:
        """Whether the price of this model goes by node, pool or labels, too."""
        candidates = self._of_model(gpu).candidates
        return bool(candidates) and not candidates[0].is_for_all

    def _rules_of_model(self, gpu: str | None) -> _OfModel:
        found: list[_Candidate] = []
        for pattern, rule in self._rules:
            if not rule.gpu or (gpu is not None and pattern.search(gpu)):
                found.append(_candidate(rule))
                if found[-1].is_for_all:
                    break
        return _OfModel(
            tuple(found),
            any(one.is_node is not None for one in found),
            any(one.is_pool is not None for one in found),
            frozenset(name for one in found for name, _ in one.labels),
        )

    def _find(
        self, gpu: str | None, node: str, pool: str | None, labels: FrozenLabels
    ) -> PriceRule | None:
        known = dict(labels)
        for rule, is_node, is_pool, wanted in self._of_model(gpu).candidates:
            if is_node is not None and not is_node(node):
                continue
            if is_pool is not None and (pool is None or not is_pool(pool)):
                continue
            for name, is_value in wanted:
                value = known.get(name)
                if value is None or not is_value(value):
                    break
            else:
                return rule
        return None


def _candidate(rule: PriceRule) -> _Candidate:
    return _Candidate(
        rule,
        None if rule.node == "*" else _matcher(rule.node),
        None if rule.pool == "*" else _matcher(rule.pool),
        tuple((name, _matcher(pattern)) for name, pattern in rule.labels.items()),
    )


def _matcher(pattern: str) -> Matcher:
    return re.compile(translate(pattern)).match
