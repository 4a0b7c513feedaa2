"""The executor: takes requests from the stream, acts, and says there what came of it."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

import structlog

from agent.executors.journal import KEEP_NS, Journal
from agent.executors.policy import POLICY, policy_decisions
from agent.executors.refusals import refusal
from agent.executors.settings import ExecutorSettings
from agent.executors.steps import (
    Outcome,
    is_reached,
    last_step,
    outdated,
    rollback_advice,
    start_step,
)
from agent.executors.target import ActionError, Target
from schemas.life import Life, Run, decision_id, step_id
from schemas.lifecycle import Component
from schemas.message import UNDECODABLE, Message
from schemas.protocols import Clock, Delivery, Lease, Leases, Publisher, PublishError, Subscriber
from schemas.scaling import Execution
from schemas.units import SECOND_NS, instant

T = TypeVar("T")

log = structlog.get_logger()

ROLE = "executor"
"""Whom a request is for; also the name of the lease, and how `executed_by` begins."""
LOOK_SECONDS = 1.0
OBSERVE_SECONDS = 10.0
HEAR_SECONDS = 10.0


class ExecutorService:
    """One process at a time executes, by a lease; others stand by and take over within 10 s.

    An execution is begun at most once: its start is a message of which the stream keeps one, and
    a start without an end, left by who was killed, is never begun anew; it is ended with what can
    be observed. One pool is changed by one execution at a time. What takes longer than
    `timeout_seconds` is cut off and has failed.
    """

    def __init__(
        self,
        publisher: Publisher,
        subscriber: Subscriber,
        leases: Leases,
        target: Target,
        settings: ExecutorSettings,
        *,
        name: str,
        is_authenticated: bool,
        clock: Clock,
    ) -> None:
        self._publisher = publisher
        self._subscriber = subscriber
        self._leases = leases
        self._target = target
        self._settings = settings
        self._by = f"{ROLE}:{name}"
        self._is_authenticated = is_authenticated
        self._clock = clock
        self._journal = Journal()
        self._news = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._serving: asyncio.Task[None] | None = None
        self._is_active = False
        self.counters: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._serve_for_ever())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._target.close()

    def components(self) -> list[Component]:
        """Whether it acts, and if not why."""
        state, text = "ok", "executing" if self._is_active else "standby: another one executes"
        serving = self._serving
        if serving is not None and serving.done() and not serving.cancelled():
            state, text = "failed", f"it has ended: {serving.exception()!r}"
        elif not self._is_authenticated:
            state, text = "degraded", "connected without authentication: refuses everything"
        elif self._settings.dry_run:
            text += "; dry runs only (executor.dry_run)"
        return [
            Component(
                name=ROLE,
                state=state,  # type: ignore[arg-type]  # one of the three literals above
                text=text,
                probed_at=instant(self._clock()),
            )
        ]

    async def _serve_for_ever(self) -> None:
        while True:
            lease = await self._leases.try_acquire(ROLE)
            if lease is None:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            try:
                await self._serve(lease)
            except PublishError as error:
                log.warning("executor_begins_anew", error=str(error))
                await asyncio.sleep(LOOK_SECONDS)
            finally:
                self._is_active = False
                await self._leases.release(lease)

    async def _serve(self, lease: Lease) -> None:
        """Work until the lease is lost; what is under way is then cut off."""
        self._journal = Journal()
        _, last = await self._subscriber.stream_bounds("RECOMMENDATIONS")
        start_ns = self._clock() - KEEP_NS
        recent = self._subscriber.read("RECOMMENDATIONS", start_ns=start_ns)
        async with contextlib.aclosing(recent):
            async for delivery in recent:
                self._take(delivery)
                last = max(last, delivery.sequence)
        stop = await self._subscriber.follow("RECOMMENDATIONS", self._take, start_sequence=last + 1)
        try:
            self._is_active = True
            while lease.held:
                news = self._news
                await self._work()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await news.wait()
        finally:
            await stop()
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)
            self._busy.clear()

    def _take(self, delivery: Delivery) -> None:
        try:
            self._journal.take(delivery)
        except UNDECODABLE as error:
            self.counters["foreign_messages_total"] += 1
            log.debug("message_passed_over", subject=delivery.subject, error=str(error)[:300])
        self._wake()

    def _wake(self) -> None:
        """Everybody who waits for news looks again."""
        self._news.set()
        self._news = asyncio.Event()

    async def _work(self) -> None:
        """Decide what the policy decides, and begin what is asked for."""
        now_ns = self._clock()
        lives = self._journal.standing(now_ns)
        for decision in policy_decisions(lives, self._settings.approval, now_ns):
            await self._publish(decision, decision_id(decision.recommendation_id))
        for life in lives:
            request = self._request_of_policy(life, now_ns)
            if request is not None:
                await self._publish(request, step_id(request))
        for life, run in self._journal.runs(_is_open):
            pool = life.advice.pool
            if pool not in self._busy:
                work = self._carry_out if run.started is None else self._end_left_behind
                task = self._busy[pool] = asyncio.create_task(work(life, run))
                task.add_done_callback(functools.partial(self._done, pool))

    def _request_of_policy(self, life: Life, now_ns: int) -> Execution | None:
        """What the policy accepted is asked for once."""
        advice, dry_run = life.advice, self._settings.dry_run
        key = f"{advice.idempotency_key}.dry_run" if dry_run else advice.idempotency_key
        by_policy = life.decision is not None and life.decision.decided_by == POLICY
        if not by_policy or key in life.runs or life.refusal(now_ns):
            return None
        return Execution(
            phase="requested",
            pool=advice.pool,
            recommendation_id=advice.recommendation_id,
            idempotency_key=key,
            observed_at=instant(now_ns),
            executed_by=ROLE,
            dry_run=dry_run,
            simulated=advice.simulated,
            requested_by=POLICY,
        )

    def _done(self, pool: str, task: asyncio.Task[None]) -> None:
        self._busy.pop(pool, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It is still open in the stream, so it is looked at again.
            log.error("execution_interrupted", pool=pool, error=str(error))
        else:
            self._wake()

    async def _carry_out(self, life: Life, run: Run) -> None:
        request = run.requested
        assert request is not None  # noqa: S101 - that is what was to do
        pool = life.advice.pool
        why = refusal(
            life,
            request,
            self._journal.lives.values(),
            self._settings,
            self._target,
            is_authenticated=self._is_authenticated,
            now_ns=self._clock(),
        )
        if why:
            await self._end(life, run, Outcome(error=f"refused: {why}"))
            return
        try:
            before = await _within(OBSERVE_SECONDS, self._target.observe(pool))
        except ActionError as error:
            await self._end(life, run, Outcome(error=f"cannot look before: {error}"))
            return
        if why := outdated(life.advice, before):
            await self._end(life, run, Outcome(before, before, error=f"refused: {why}"))
        elif is_reached(life.advice, before):
            await self._end(life, run, Outcome(before, before, f"{pool} has {before} already"))
        elif request.dry_run:
            await self._end(life, run, Outcome(before, text=self._target.plan(life.advice)))
        else:
            start = start_step(request, self._by, before, self._clock())
            await self._publish(start, step_id(start))
            await self._until(lambda: run.started is not None)
            if run.started == start:  # of two that begin at once the stream keeps one
                await self._end(life, run, await self._act(life, before))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for the stream to tell what was just written there."""
        async with asyncio.timeout(HEAR_SECONDS):
            while not condition():
                await self._news.wait()

    async def _act(self, life: Life, before: int | None) -> Outcome:
        """Change the pool, and look what it has then."""
        advice, seconds = life.advice, self._settings.timeout_seconds
        text, error, has_acted = "", "", True
        try:
            text = await _within(seconds, self._target.scale(advice))
        except ActionError as failure:
            error, has_acted = str(failure), failure.has_acted
        after = None
        try:
            after = await _within(OBSERVE_SECONDS, self._target.observe(advice.pool))
        except ActionError as failure:
            error = error or f"cannot look afterwards: {failure}"
        if not error and after is not None and after != advice.replicas_to:
            error = f"{advice.pool} has {after} replicas afterwards, not {advice.replicas_to}"
        return Outcome(before, after, text, error, has_acted)

    async def _end_left_behind(self, life: Life, run: Run) -> None:
        """End what an executor began that is gone: never again, only what can be seen of it."""
        assert run.started is not None  # noqa: S101 - it was left behind
        before, after = run.started.replicas_before, None
        with contextlib.suppress(ActionError):
            after = await _within(OBSERVE_SECONDS, self._target.observe(life.advice.pool))
        outcome = Outcome(before, after, error=f"{run.started.executed_by} ended in the middle")
        if after is not None and after == life.advice.replicas_to:
            outcome = Outcome(before, after, f"{run.started.executed_by} ended after the change")
        await self._end(life, run, outcome)

    async def _end(self, life: Life, run: Run, outcome: Outcome) -> None:
        request = run.requested or run.last
        now_ns = self._clock()
        stands_ns = int(self._settings.rollback_expires_seconds * SECOND_NS)
        back = rollback_advice(life.advice, request, outcome, now_ns, stands_ns)
        if back is not None:
            await self._publish(back, back.recommendation_id)
        end = last_step(request, outcome, self._by, now_ns, back)
        await self._publish(end, step_id(end))
        self.counters[f"executions_{end.phase}_total"] += 1
        log.info(
            "execution_ended",
            phase=end.phase,
            recommendation_id=end.recommendation_id,
            dry_run=end.dry_run,
            error=end.error,
        )
        await self._until(lambda: run.ended is not None)

    async def _publish(self, message: Message, message_id: str) -> None:
        await self._publisher.publish(message, message_id=message_id)


async def _within(seconds: float, action: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await action
    except TimeoutError:
        raise ActionError(f"it took longer than {seconds:g} s and was ended") from None


def _is_open(run: Run) -> bool:
    """Whether it is for an executor to begin, or to end what one has begun."""
    if run.started is not None:
        is_ours = run.started.executed_by.startswith(f"{ROLE}:")
    else:
        is_ours = run.requested is not None and run.requested.executed_by == ROLE
    return is_ours and run.ended is None
