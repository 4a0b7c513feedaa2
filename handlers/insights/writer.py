"""Writes one insight: by the model where it may be asked and its answer holds, else by template."""

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Sequence

import structlog

from handlers.insights.answer import INSTRUCTIONS, SCHEMA, AnswerError, checked, question
from handlers.insights.breaker import Breaker
from handlers.insights.facts import Fact, facts_of
from handlers.insights.names import Names
from handlers.insights.settings import InsightsSettings
from schemas.analysis import Scope
from schemas.insights import Finding, Insight
from schemas.language_model import Completion, LanguageModel, LanguageModelError
from schemas.message import Message
from schemas.units import instant

log = structlog.get_logger()

FIRST_RETRY_SECONDS = 0.5
TEMPLATE_SENTENCES = 3
TEMPLATE_FINDINGS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """The facts about one node, pool or the fleet; `names` turns their stand-ins into names."""

    scope: Scope
    id: str
    facts: Sequence[Fact]
    names: Names
    simulated: bool

    @property
    def keys(self) -> list[str]:
        """What the insight rests on; another list: the evidence has changed in kind."""
        return sorted(fact.key for fact in self.facts)

    @property
    def digest(self) -> str:
        """Of what is known, with every figure."""
        lines = (f"{fact.key} {self.names.restore(fact.text)}" for fact in self.facts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def known(scope: Scope, name: str, messages: Sequence[Message], facts_max: int) -> Known:
    """What `messages` say about it."""
    names = Names()
    facts = facts_of(messages, names, facts_max)
    simulated = any(getattr(message, "simulated", False) for message in messages)
    return Known(scope, name, facts, names, simulated)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """What came of asking: text and findings, or why there are none; and what that took."""

    text: str = ""
    findings: Sequence[Finding] = ()
    failure: str | None = None
    latency_seconds: float | None = None
    completion: Completion | None = None


class Writer:
    """Writes insights; asks the model once at a time and not while its breaker is open.

    `no_model`: why there is none to ask.
    """

    def __init__(
        self, model: LanguageModel | None, settings: InsightsSettings, no_model: str = ""
    ) -> None:
        self._model = model
        self._settings = settings
        self._no_model = no_model
        self._breaker = Breaker()

    def unwilling(self, last_hour: Sequence[Insight]) -> str | None:
        """Why the model is not asked now; None: it is."""
        if self._model is None:
            return self._no_model
        open_seconds = self._breaker.open_seconds(time.monotonic())
        if open_seconds:
            return (
                f"the model is not asked for another {open_seconds:.0f} s: {self._breaker.reason}"
            )
        spent = sum(map(self._tokens, last_hour))
        if spent >= self._settings.tokens_per_hour:
            return f"{spent} tokens were used in the last hour (insights.tokens_per_hour)"
        return None

    def _tokens(self, insight: Insight) -> int:
        if insight.latency_seconds is None:
            return 0
        if insight.prompt_tokens is None or insight.completion_tokens is None:
            return self._settings.max_tokens
        return insight.prompt_tokens + insight.completion_tokens

    async def write(self, known: Known, last_hour: Sequence[Insight], now_ns: int) -> Insight:
        """The insight about `known`; what the model said to the same an hour ago still holds."""
        digest = known.digest
        same = [one for one in last_hour if one.evidence_digest == digest and one.source == "llm"]
        if same:
            asked = _Asked(same[-1].text, same[-1].findings)
        else:
            asked = await self._ask(known, last_hour)
        if asked.failure is None:
            text, findings = asked.text, list(asked.findings)
        else:
            text, findings = by_template(known)
        completion = asked.completion
        has_asked = asked.latency_seconds is not None
        return Insight(
            scope=known.scope,
            id=known.id,
            insight_id=f"{known.scope}.{known.id}.{now_ns}",
            decided_at=instant(now_ns),
            text=text,
            findings=findings,
            source="template" if asked.failure is not None else "llm",
            template_reason=asked.failure,
            evidence=known.keys,
            evidence_digest=digest,
            model=self._model.name if self._model and (has_asked or same) else None,
            latency_seconds=asked.latency_seconds,
            prompt_tokens=completion.prompt_tokens if completion else None,
            completion_tokens=completion.completion_tokens if completion else None,
            cost_usd=self._cost(completion),
            simulated=known.simulated,
        )

    def _cost(self, completion: Completion | None) -> float | None:
        if completion is None:
            return None
        pairs = (
            (completion.prompt_tokens, self._settings.usd_per_million_prompt_tokens),
            (completion.completion_tokens, self._settings.usd_per_million_completion_tokens),
        )
        costs = [
            tokens * price / 1e6
            for tokens, price in pairs
            if tokens is not None and price is not None
        ]
        return sum(costs) if len(costs) == len(pairs) else None

    async def _ask(self, known: Known, last_hour: Sequence[Insight]) -> _Asked:
        unwilling = self.unwilling(last_hour)
        if self._model is None or unwilling is not None:
            return _Asked(failure=unwilling)
        began = time.monotonic()
        completion: Completion | None = None
        retry_after: float | None = None
        is_transient = True
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                completion = await self._complete(self._model, question(known.facts), began)
            if not completion.is_whole:
                raise AnswerError("cut off at its limit of tokens (insights.max_tokens)")
            text, findings = checked(completion.text, known.facts, known.names)
        except TimeoutError:
            failure = f"no answer within {self._settings.deadline_seconds:g} s"
        except LanguageModelError as error:
            failure, is_transient = str(error), error.is_transient
            retry_after = error.retry_after_seconds
        except AnswerError as error:
            failure = f"its answer was refused: {error}"
        else:
            self._breaker.succeeded()
            latency = time.monotonic() - began
            return _Asked(text, findings, latency_seconds=latency, completion=completion)
        now = time.monotonic()
        self._breaker.failed(
            now, failure, retry_after_seconds=retry_after, is_transient=is_transient
        )
        log.warning("insight_not_by_model", scope=known.scope, id=known.id, reason=failure)
        return _Asked(failure=failure, latency_seconds=now - began, completion=completion)

    async def _complete(self, model: LanguageModel, text: str, began: float) -> Completion:
        """Ask until it answers, as long as what it says to wait fits into the deadline."""
        pause_seconds = FIRST_RETRY_SECONDS
        while True:
            try:
                return await model.complete(INSTRUCTIONS, text, SCHEMA)
            except LanguageModelError as error:
                wait_seconds = max(pause_seconds, error.retry_after_seconds or 0.0)
                left_seconds = began + self._settings.deadline_seconds - time.monotonic()
                if not error.is_transient or wait_seconds >= left_seconds:
                    raise
            await asyncio.sleep(wait_seconds)
            pause_seconds *= 2

    def trouble(self) -> str:
        """Why the model failed last; empty: it did not."""
        return self._breaker.reason


def by_template(known: Known) -> tuple[str, list[Finding]]:
    """The facts themselves, the worst first, labelled."""
    sentences = [known.names.restore(fact.text) for fact in known.facts]
    findings = [
        Finding(text=sentence, severity=fact.severity, evidence=[fact.key])
        for sentence, fact in zip(sentences, known.facts, strict=True)
    ]
    text = "By template: " + " ".join(sentences[:TEMPLATE_SENTENCES])
    return text, findings[:TEMPLATE_FINDINGS]
