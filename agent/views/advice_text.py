"""Advice and its story as lines for a terminal."""

from collections.abc import Iterator, Sequence

import msgspec

from agent import human
from agent.executors.policy import outranked_by
from agent.views.money_text import cost_line, saving_lines
from schemas.decisions import EngineSource, Explanation, MetricSource, TrailEntry
from schemas.life import WANTED
from schemas.metrics import Rollup
from schemas.money import usd
from schemas.precedence import decided_by
from schemas.scaling import SCALING, Decision, Evidence, Execution, HeldAdvice, Recommendation
from schemas.units import to_ns


def advice_lines(story: Explanation, others: Sequence[Explanation]) -> Iterator[str]:
    """One piece of advice: what, why, what it is worth, until when, and what to type next.

    Of `others` those that may still be carried out can contradict it, as with an executor.
    """
    advice = story.life.advice
    yield f"{_name(advice)}  {change(advice)}  [{story.state}]"
    yield f"    why: {human.printable(advice.text or advice.reason)}"
    yield from (f"    {line}" for line in _moves(advice))
    left = (to_ns(advice.expires_at) - to_ns(story.answered_at)) / 1e9
    until = f"stands for {human.duration(left)}" if left > 0 else "expired"
    sure = f"confidence {advice.confidence_ratio:.0%}"
    yield f"    {money(advice)}, {advice.risk} risk, {sure}, {until}"
    rivals = [other.life.advice for other in others if other.state in WANTED]
    winner = outranked_by(advice, rivals)
    if winner is not None:
        criterion = decided_by(winner, advice)
        yield f"    contradicts {_name(winner)}, which goes first by {criterion}"
    if advice.simulated:
        yield "    from simulated evidence: no executor carries it out"
    yield f"    next: {_next(story)}"


def held_line(held: HeldAdvice) -> str:
    """What is not advised, and why."""
    change = f"{held.action} {held.pool} {held.replicas_from} → {held.replicas_to}"
    simulated = " (simulated)" if held.simulated else ""
    return f"not advised: {change}{simulated}: {human.printable(held.text)}  [{held.reason}]"


def story_lines(story: Explanation) -> Iterator[str]:
    """One recommendation, from the messages behind it to what became of it."""
    advice = story.life.advice
    yield f"{_name(advice)}  {change(advice)}  [{story.state}]"
    yield f"  {human.printable(advice.text or advice.reason)}"
    yield from (f"  {line}" for line in _moves(advice))
    if story.closed:
        yield f"  does not stand: {human.printable(story.closed)}"
    yield "evidence"
    yield from (f"  {_evidence(one)}" for one in advice.evidence)
    if not advice.evidence:
        yield "  none was given"
    yield from _measured(story)
    if story.forecasts:
        yield "forecast"
    for forecast in story.forecasts:
        for horizon in forecast.horizons:
            yield (
                f"  {forecast.signal} in {human.duration(horizon.ahead_seconds)}: "
                f"{horizon.p50:.3g} ({horizon.p10:.3g} to {horizon.p90:.3g}), by the minute of "
                f"{forecast.minute_at:%F %T}Z"
            )
    if story.waste is not None or story.opportunity is not None:
        yield "cost of the pool's GPUs, as told before it"
    if story.waste is not None:
        yield f"  {human.printable(cost_line(story.waste))}"
    if story.opportunity is not None:
        yield from (f"  {human.printable(line)}" for line in saving_lines(story.opportunity))
    if story.missing:
        yield "not found"
        yield from (f"  {human.printable(text)}" for text in story.missing)
    yield "in FLEET_RECOMMENDATIONS"
    yield from (f"  {_entry(entry)}" for entry in story.trail)
    yield f"next: {_next(story)}"


def _measured(story: Explanation) -> Iterator[str]:
    """What engines and GPUs reported, and what else the evidence names."""
    if story.engines:
        yield "measured, in FLEET_METRICS"
        yield from (f"  {_engine(one)}" for one in story.engines)
    if story.rollups:
        yield "measured, in FLEET_ROLLUPS (means of a minute)"
        yield from (f"  {_minute(one, story.life.advice)}" for one in story.rollups)
    if story.sources:
        if not story.engines:
            yield "measured"
        yield from (f"  {_source(one)}" for one in story.sources)


def execution_line(step: Execution) -> str:
    """How far an execution is."""
    kind = "dry run" if step.dry_run else "execution"
    said = step.error or step.text
    states = f" ({_count(step.replicas_before)} → {_count(step.replicas_after)} replicas)"
    return f"{kind} {step.phase}{states if step.replicas_after is not None else ''}" + (
        f": {human.printable(said)}" if said else ""
    )


def _name(advice: Recommendation) -> str:
    return human.printable(advice.recommendation_id)


def change(advice: Recommendation) -> str:
    """What is to be done: `scale_up chat 2 → 3`, `tune_cache default (thrash)`."""
    what_on = f"{advice.action} {advice.pool}"
    if advice.action in SCALING:
        return f"{what_on} {advice.replicas_from} → {advice.replicas_to}"
    what: list[str] = [one.cause for one in advice.cache_changes]
    what += [f"empties {move.node}" for move in advice.moves]
    what += [f"{one.gpu_from} → {one.gpu_to}" for one in advice.gpu_changes]
    return f"{what_on} ({human.printable(', '.join(dict.fromkeys(what)))})"


def _moves(advice: Recommendation) -> Iterator[str]:
    for number, move in enumerate(advice.moves, start=1):
        saving = move.saving_usd_per_hour
        worth = f", {move.node} is empty then: saves {usd(saving)}/h" if saving else ""
        yield (
            f"{number}. {move.node}/{move.gpu} → {move.to_node}/{move.to_gpu}: "
            f"{human.size(move.memory_bytes)}, busy up to {move.busy_ratio:.0%}{worth}"
        )


def _count(replicas: int | None) -> str:
    return "?" if replicas is None else str(replicas)


def money(advice: Recommendation) -> str:
    """What it saves or costs an hour, and once."""
    saving, payback = advice.saving_usd_per_hour, advice.payback_hours
    if saving is None:
        text = "no price is known" if advice.action in SCALING else "saving not known"
    else:
        text = f"saves {usd(saving)}/h" if saving >= 0 else f"costs {usd(-saving)}/h"
    if advice.one_off_cost_usd is not None:
        text += f", {usd(advice.one_off_cost_usd)} once"
    return text if payback is None else f"{text}, pays back in {human.duration(payback * 3600)}"


def _next(story: Explanation) -> str:
    name = _name(story.life.advice)
    is_executable = story.life.advice.action in SCALING
    match story.state:
        case "accepted" | "failed" if not is_executable:
            return "carry it out: no executor can"
        case "accepted" | "failed" if story.life.advice.simulated:
            return "nothing: no executor carries out what is from simulated evidence"
        case "open":
            return f"resource-agent approve {name}   (or: resource-agent reject {name} --reason …)"
        case "accepted":
            return f"resource-agent approve {name} --execute   (a dry run; then --for-real)"
        case "failed":
            return f"look why, then: resource-agent approve {name} --execute --for-real --key NEW"
        case "requested" | "executing":
            return f"resource-agent explain {name}   (it is under way)"
        case _:
            return "nothing: it is settled"


def _evidence(one: Evidence) -> str:
    text = f"{human.printable(one.signal)} {human.amount(one.value)}"
    if one.threshold is not None:
        text += f", against {human.amount(one.threshold)}"
    if one.window_seconds:
        text += f", over {human.duration(one.window_seconds)}"
    if one.stream_from is not None and one.stream_to is not None:
        text += f", messages {one.stream_from} to {one.stream_to}"
    if one.sources:
        text += f", by {human.printable('; '.join(one.sources))}"
    return f"{text}, of {one.subject}" if one.subject is not None else text


def _minute(rollup: Rollup, advice: Recommendation) -> str:
    names = dict.fromkeys(
        # Advice counts the `utilization_ratio` of GPUs by a name of its own.
        "gpu_utilization_ratio" if one.signal == "gpu_busy_ratio" else f"engine_{one.signal}"
        for one in advice.evidence
    )
    means = {name: rollup.metrics.get(name) for name in names}
    told = [f"{name} {found.mean:.4g}" for name, found in means.items() if found is not None]
    return f"{rollup.minute_at:%F %T}Z  {', '.join(told) or 'none of these signals'}"


def _engine(one: EngineSource) -> str:
    values = [
        f"{human.printable(name)} {'-' if value is None else f'{value:.4g}'}"
        for name, value in one.values.items()
    ]
    messages = f"{one.messages} messages, {one.first_sequence} to {one.last_sequence}"
    return f"{one.node}/{one.engine}: {messages}; in the last {', '.join(values)}"


def _source(one: MetricSource) -> str:
    when = f"{one.first_at:%F %T}Z to {one.last_at:%T}Z"
    values = ", ".join(
        f"{human.printable(name)} {_figure(value)} → {_figure(one.last.get(name))}"
        f" (highest {_figure(one.highest.get(name))})"
        for name, value in one.first.items()
    )
    return f"{human.printable(one.subject)}: {one.messages} messages, {when}; {values}"


def _figure(value: float | None) -> str:
    return "-" if value is None else human.amount(value, digits=6)


def _entry(entry: TrailEntry) -> str:
    family = entry.subject.split(".")[0]
    said = ""
    if family == "decision":
        decision = msgspec.json.decode(entry.message, type=Decision)
        said = f"by {decision.decided_by}" + (f": {decision.reason}" if decision.reason else "")
    elif family == "execution":
        step = msgspec.json.decode(entry.message, type=Execution)
        asked = f", asked by {step.requested_by}" if step.requested_by else ""
        said = f"{execution_line(step)}, by {step.executed_by}{asked}, key {step.idempotency_key}"
    line = f"{entry.sequence}  {entry.stored_at:%F %T}Z  {entry.subject}  {human.printable(said)}"
    return line.rstrip()
