"""Sums of GPU-time, money, energy and tokens by the hour, and the figures that follow. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from handlers.prices import PriceList
from handlers.spending.gpu_minutes import GpuMinute
from handlers.utilization.levels import power_efficiency
from schemas.analysis import Scope
from schemas.spending import Figures, ModelUse, StateUse, Usage
from schemas.units import SECOND_NS, instant

State: TypeAlias = Literal["active", "idle_held", "idle", "unknown"]

HOUR_NS = 3600 * SECOND_NS
MONTH_HOURS = 730.0
MINUTES = 60.0
MAX_MODELS = 32
ENOUGH_RATIO = 0.95
"""Joules per token are given out when the energy of so much of the GPU-time is known."""


class Sums(msgspec.Struct, array_like=True):
    """GPU-minutes, and of those whose price or energy is known, how many and how much."""

    minutes: int = 0
    priced_minutes: int = 0
    usd: float = 0.0
    waste_usd: float = 0.0
    energy_minutes: int = 0
    joules: float = 0.0

    def add(self, usd: float | None, waste_usd: float, joules: float | None) -> None:
        """Count one GPU-minute."""
        self.minutes += 1
        if usd is not None:
            self.priced_minutes += 1
            self.usd += usd
            self.waste_usd += waste_usd
        if joules is not None:
            self.energy_minutes += 1
            self.joules += joules


class Hour(msgspec.Struct, array_like=True):
    """One hour of a group, filled minute by minute."""

    hour_ns: int
    minutes: int = 0
    states: dict[State, Sums] = {}
    models: dict[str, Sums] = {}
    under_used_minutes: float = 0.0
    under_used_usd: float = 0.0
    utilization_sum: float = 0.0
    utilization_minutes: int = 0
    power_efficiency_sum: float = 0.0
    power_minutes: int = 0
    prompt_tokens: float | None = None
    generation_tokens: float | None = None

    def add(self, minute: GpuMinute, prices: PriceList, target_ratio: float) -> None:
        """Count a GPU's minute, in exactly one state."""
        state: State = minute.state or "unknown"
        rule = prices.find(minute.name, minute.key[0], minute.pool, minute.labels)
        hourly = None if rule is None else rule.usd_per_gpu_hour
        energy_usd = (prices.usd_per_joule or 0.0) * (minute.energy_joules or 0.0)
        usd = None if hourly is None else hourly / MINUTES + energy_usd
        utilization = minute.utilization_ratio
        waste_usd = (usd or 0.0) if state in ("idle", "idle_held") else 0.0
        if state == "active" and utilization is not None:
            # Rounded: a mean of 0.7 may be short of 0.7 by its last bit, and that is no waste.
            short = round(1.0 - min(1.0, utilization / target_ratio), 9)
            self.under_used_minutes += short
            # Energy follows work, so that of an under-used GPU is no waste.
            waste_usd = (hourly or 0.0) / MINUTES * short
            self.under_used_usd += waste_usd
        self.states.setdefault(state, Sums()).add(usd, waste_usd, minute.energy_joules)
        model = minute.name or "unknown"
        if model not in self.models and len(self.models) >= MAX_MODELS - 1:
            model = "other"
        self.models.setdefault(model, Sums()).add(usd, waste_usd, minute.energy_joules)
        if utilization is not None:
            self.utilization_sum += utilization
            self.utilization_minutes += 1
        efficiency = power_efficiency(utilization, minute.power_ratio)
        if efficiency is not None:
            self.power_efficiency_sum += efficiency
            self.power_minutes += 1

    def add_tokens(self, prompt: float | None, generation: float | None) -> None:
        """Count what the engines read and wrote in a minute."""
        if prompt is not None:
            self.prompt_tokens = (self.prompt_tokens or 0.0) + prompt
        if generation is not None:
            self.generation_tokens = (self.generation_tokens or 0.0) + generation

    @property
    def is_empty(self) -> bool:
        """Neither a GPU nor a token was measured in it."""
        return not self.states and self.prompt_tokens is None and self.generation_tokens is None

    def message(self, scope: Scope, group: str, pool: str | None, *, simulated: bool) -> Usage:
        """As it is published."""
        states = {
            name: self.states.get(name, Sums())
            for name in ("active", "idle_held", "idle", "unknown")
        }
        total = sum(sums.minutes for sums in states.values())
        priced = sum(sums.priced_minutes for sums in states.values())
        return Usage(
            scope=scope,
            id=group,
            pool=pool,
            hour_at=instant(self.hour_ns),
            minutes=self.minutes,
            **{name: _state_use(sums) for name, sums in states.items()},
            under_used_gpu_hours=self.under_used_minutes / MINUTES,
            under_used_usd=self.under_used_usd if priced else None,
            unpriced_gpu_hours=(total - priced) / MINUTES,
            utilization_ratio=self.utilization_sum / self.utilization_minutes
            if self.utilization_minutes
            else None,
            utilization_gpu_hours=self.utilization_minutes / MINUTES,
            power_efficiency_ratio=self.power_efficiency_sum / self.power_minutes
            if self.power_minutes
            else None,
            power_gpu_hours=self.power_minutes / MINUTES,
            energy_gpu_hours=sum(sums.energy_minutes for sums in states.values()) / MINUTES,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            models={
                name: ModelUse(
                    gpu_hours=sums.minutes / MINUTES,
                    usd=sums.usd if sums.priced_minutes else None,
                    waste_usd=sums.waste_usd if sums.priced_minutes else None,
                )
                for name, sums in sorted(self.models.items())
            },
            simulated=simulated,
        )


def _state_use(sums: Sums) -> StateUse:
    return StateUse(
        gpu_hours=sums.minutes / MINUTES,
        usd=sums.usd if sums.priced_minutes else None,
        energy_joules=sums.joules if sums.energy_minutes else None,
    )


def total(values: Sequence[float | None]) -> float | None:
    """The sum of those that are known; None: none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def figures(hours: Sequence[Usage]) -> Figures:
    """What these hours of one group come to together; real and simulated GPUs share an hour.

    8 GPUs at 4 USD for one hour, two of them idle and the others active at 0.35 of a target of
    0.7: cost 32, idle 8, under-used 6 · 4 · 0.5 = 12, waste 20 = 0.625 of it, 14,600 a month.
    All eight of unknown state: cost 32, waste null.
    """
    states = {
        name: [getattr(hour, name) for hour in hours]
        for name in ("active", "idle_held", "idle", "unknown")
    }
    gpu_hours = {name: sum(use.gpu_hours for use in uses) for name, uses in states.items()}
    money = {name: total([use.usd for use in uses]) for name, uses in states.items()}
    joules = {name: total([use.energy_joules for use in uses]) for name, uses in states.items()}
    all_gpu_hours = sum(gpu_hours.values())
    minutes: dict[datetime, int] = {}
    for hour in hours:
        minutes[hour.hour_at] = max(hour.minutes, minutes.get(hour.hour_at, 0))
    measured_hours = sum(minutes.values()) / MINUTES
    usd = total(list(money.values()))
    under_used = total([hour.under_used_usd for hour in hours])
    under_used_gpu_hours = sum(hour.under_used_gpu_hours for hour in hours)
    # Of GPUs of which nothing was measured it is not known that nothing was wasted.
    is_known = all_gpu_hours > gpu_hours["unknown"]
    waste = None
    if usd is not None and is_known:
        waste = (money["idle"] or 0) + (money["idle_held"] or 0) + (under_used or 0.0)
    unknown = money["unknown"]
    waste_ratio = None
    if usd and waste is not None:
        waste_ratio = min(1.0, waste / usd)
    elif is_known:
        wasted = gpu_hours["idle"] + gpu_hours["idle_held"] + under_used_gpu_hours
        waste_ratio = min(1.0, wasted / all_gpu_hours)
    energy = total(list(joules.values()))
    energy_gpu_hours = sum(hour.energy_gpu_hours for hour in hours)
    generated = total([hour.generation_tokens for hour in hours])
    tokens = total([*(hour.prompt_tokens for hour in hours), generated])
    # Part of the cost is no price for all of the tokens.
    whole_usd = None if any(hour.unpriced_gpu_hours for hour in hours) else usd
    is_energy_known = energy_gpu_hours >= ENOUGH_RATIO * all_gpu_hours > 0
    per_hour = 1 / measured_hours if measured_hours else 0.0
    return Figures(
        gpus=all_gpu_hours * per_hour if all_gpu_hours else None,
        gpu_hours=all_gpu_hours,
        used_gpu_hours=max(0.0, gpu_hours["active"] - under_used_gpu_hours),
        under_used_gpu_hours=under_used_gpu_hours,
        idle_held_gpu_hours=gpu_hours["idle_held"],
        idle_gpu_hours=gpu_hours["idle"],
        unknown_gpu_hours=gpu_hours["unknown"],
        usd=usd,
        used_usd=None if usd is None else max(0.0, usd - (waste or 0.0) - (unknown or 0.0)),
        idle_usd=None if usd is None else money["idle"] or 0.0,
        idle_held_usd=None if usd is None else money["idle_held"] or 0.0,
        under_used_usd=None if usd is None else under_used or 0.0,
        unknown_usd=None if usd is None else unknown or 0.0,
        waste_usd=waste,
        waste_ratio=waste_ratio,
        usd_per_hour=None if usd is None else usd * per_hour,
        waste_usd_per_hour=None if waste is None else waste * per_hour,
        waste_usd_per_month=None if waste is None else waste * per_hour * MONTH_HOURS,
        energy_joules=energy,
        idle_energy_joules=None
        if energy is None
        else (joules["idle"] or 0.0) + (joules["idle_held"] or 0.0),
        utilization_ratio=_weighted(hours, "utilization_ratio", "utilization_gpu_hours"),
        power_efficiency_ratio=_weighted(hours, "power_efficiency_ratio", "power_gpu_hours"),
        tokens_per_second=_by(tokens, measured_hours * 3600),
        tokens_per_second_per_gpu=_by(tokens, all_gpu_hours * 3600),
        usd_per_million_tokens=_by(whole_usd, (tokens or 0.0) / 1e6),
        usd_per_million_generation_tokens=_by(whole_usd, (generated or 0.0) / 1e6),
        joules_per_token=_by(energy if is_energy_known else None, tokens or 0.0),
    )


def _by(value: float | None, divisor: float) -> float | None:
    return value / divisor if value is not None and divisor > 0 else None


def _weighted(hours: Sequence[Usage], ratio: str, weight: str) -> float | None:
    """The mean of `ratio` over GPU-time."""
    known = [
        (getattr(h, ratio), getattr(h, weight)) for h in hours if getattr(h, ratio) is not None
    ]
    weights = sum(weight for _, weight in known)
    return min(1.0, sum(value * w for value, w in known) / weights) if weights else None
