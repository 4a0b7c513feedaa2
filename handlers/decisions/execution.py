"""`api.optimize.execute`: has one recommendation carried out, once for each idempotency key."""

from collections import Counter
from collections.abc import Callable

from handlers.decisions.advice_log import AdviceLog
from handlers.decisions.explain import Explain
from handlers.foreign import ForeignMessages
from handlers.queries.reading import Reading
from handlers.settings import QuerySettings
from schemas.decisions import ExecuteReply, ExecuteRequest, ExplainRequest, Explanation
from schemas.life import Life, Run, step_id
from schemas.protocols import (
    Call,
    Clock,
    Endpoint,
    Publisher,
    PublishError,
    RequestError,
    Subscriber,
    json_endpoint,
)
from schemas.scaling import Execution
from schemas.units import instant

EXECUTOR = "executor"
"""Who is to do it: the service of that role."""


class Executions:
    """Writes the request into the stream; the executor does the rest, and says so there.

    All state is in the stream. A request with a known key is answered from it, also after a
    restart of everything; of two at once with one key the stream keeps the first.
    """

    def __init__(
        self,
        log: AdviceLog,
        publisher: Publisher,
        clock: Clock,
        count_executors: Callable[[], int],
    ) -> None:
        self._log = log
        self._publisher = publisher
        self._clock = clock
        self._count_executors = count_executors

    async def execute(self, request: ExecuteRequest, _call: Call) -> ExecuteReply:
        """Have it carried out, or say how far it is.

        Raises:
            RequestError: 404 no such advice; 409 it may not be carried out, or the key is of
                another execution; 503 no executor runs, or the stream does not answer.
        """
        life, _ = await self._log.read(request.recommendation_id)
        key = request.idempotency_key or _default_key(life, request, self._clock())
        run = life.runs.get(key)
        if run is not None:
            return self._reply(_same(run, request), is_new=False)
        now_ns = self._clock()
        if reason := life.closed(now_ns) if request.dry_run else life.refusal(now_ns):
            is_open = life.state(now_ns) == "open"
            hint = f"; type `resource-agent approve {request.recommendation_id}`" if is_open else ""
            raise RequestError(409, f"{reason}{hint}")
        if self._count_executors() == 0:
            raise RequestError(503, "no executor runs; start one: `resource-agent run executor`")
        step = Execution(
            phase="requested",
            pool=life.advice.pool,
            recommendation_id=request.recommendation_id,
            idempotency_key=key,
            observed_at=instant(self._clock()),
            executed_by=EXECUTOR,
            dry_run=request.dry_run,
            simulated=life.advice.simulated,
            requested_by=request.requested_by,
        )
        try:
            await self._publisher.publish(step, message_id=step_id(step))
        except PublishError as error:
            raise RequestError(503, "the stream does not take the request now") from error
        life, _ = await self._log.read(request.recommendation_id)
        run = life.runs.get(key)
        if run is None:
            raise RequestError(409, f"idempotency_key {key!r} is that of another recommendation")
        return self._reply(_same(run, request), is_new=run.requested == step)

    def _reply(self, run: Run, *, is_new: bool) -> ExecuteReply:
        return ExecuteReply(answered_at=instant(self._clock()), execution=run.last, is_new=is_new)


def execution_endpoints(
    subscriber: Subscriber,
    publisher: Publisher,
    clock: Clock,
    settings: QuerySettings,
    counters: Counter[str],
    count_executors: Callable[[], int],
) -> list[Endpoint]:
    """`api.optimize.execute` and `explain`; they count into `counters`."""
    reading = Reading(subscriber, settings, ForeignMessages(counters, clock))
    log = AdviceLog(reading)
    return [
        json_endpoint(
            "optimize_execute",
            "api.optimize.execute",
            ExecuteRequest,
            Executions(log, publisher, clock, count_executors).execute,
            reply_type=ExecuteReply,
        ),
        json_endpoint(
            "optimize_explain",
            "api.optimize.explain",
            ExplainRequest,
            Explain(log, reading, clock).explain,
            reply_type=Explanation,
        ),
    ]


def _default_key(life: Life, request: ExecuteRequest, now_ns: int) -> str:
    if request.dry_run:
        return f"{request.recommendation_id}.dry_run.{now_ns}"
    return life.advice.idempotency_key


def _same(run: Run, request: ExecuteRequest) -> Run:
    if run.last.dry_run != request.dry_run:
        kind = "a dry run" if run.last.dry_run else "no dry run"
        raise RequestError(409, f"the execution with this idempotency_key is {kind}")
    return run
