"""Request/reply endpoints as an ADR-32 service: `nats micro ls`, `info` and `stats` show it.

nats-py's own `nats.micro` runs one request at a time per endpoint, echoes the request's headers
into the reply, sends `repr(exception)` to the requester and drops what is in flight at `stop`;
docs/decisions/0002 says why its 80 lines of protocol are written anew here.
"""

import asyncio
import contextlib
import inspect
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agent.bus.cancellation import heed
from agent.bus.client import BusClient, size_on_wire
from agent.bus.errors import BusError, raised_as
from agent.bus.names import Names
from schemas.protocols import Answer, Call, Endpoint, RequestError, busy

log = structlog.get_logger()

MAX_IN_FLIGHT = 256
DRAIN_SECONDS = 5.0
LATENCIES_KEPT = 1024
VERSION = "0.1.0"
_TYPE = "io.nats.micro.v1."


class _Served:
    """One endpoint with its subscription and statistics."""

    def __init__(self, endpoint: Endpoint, subject: str, queue: str) -> None:
        self.endpoint = endpoint
        self.subject = subject
        self.queue = queue
        self.subscription: Subscription | None = None
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.busy_ns = 0
        self.running: set[asyncio.Task[None]] = set()
        self.errors_by_code: Counter[str] = Counter()
        self._latencies_ns: deque[int] = deque(maxlen=LATENCIES_KEPT)

    def finish(self, started_ns: int, error: RequestError | None) -> None:
        elapsed = time.perf_counter_ns() - started_ns
        self.busy_ns += elapsed
        self._latencies_ns.append(elapsed)
        if error is not None:
            self.errors += 1
            self.errors_by_code[str(error.code)] += 1
            self.last_error = f"{error.code}: {error.text}"

    def info(self) -> dict[str, Any]:
        return {
            "name": self.endpoint.name,
            "subject": self.subject,
            "queue_group": self.queue,
            "metadata": dict(self.endpoint.metadata),
        }

    def stats(self) -> dict[str, Any]:
        latencies = sorted(self._latencies_ns)

        def quantile(q: float) -> float | None:
            if not latencies:
                return None
            return latencies[min(len(latencies) - 1, int(q * len(latencies)))] / 1e9

        return {
            "name": self.endpoint.name,
            "subject": self.subject,
            "queue_group": self.queue,
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": self.busy_ns,
            "average_processing_time": self.busy_ns // self.requests if self.requests else 0,
            "data": {
                "latency_p50_seconds": quantile(0.50),
                "latency_p95_seconds": quantile(0.95),
                "latency_p99_seconds": quantile(0.99),
                "latency_samples": len(latencies),
                "in_flight": len(self.running),
                "queue_depth": self.subscription.pending_msgs if self.subscription else 0,
                "errors_by_code": dict(self.errors_by_code),
                **self.endpoint.statistics(),
            },
        }


class Service:
    """One ADR-32 service on one connection. Stops by draining: what was accepted is answered.

    A handler that answers at once is answered inline; an awaitable gets a task of its own, at
    most 256 per endpoint, then 429. Errors never leave as `repr`: RequestError as it says,
    anything else as 500 in our words. No reply goes to `$…` or below our own root: a requester
    that names such a reply address would otherwise publish there with our rights.
    """

    def __init__(
        self,
        client: BusClient,
        names: Names,
        name: str,
        *,
        description: str,
        metadata: Mapping[str, str],
        on_bad_message: Callable[[str, Exception], None],
    ) -> None:
        self.name = name
        self.id = secrets.token_hex(11)
        self._client = client
        self._names = names
        self._closed_to_replies = ("$", f"{names.root}.")
        self._description = description
        self._metadata = dict(metadata)
        self._on_bad_message = on_bad_message
        self._started_at = datetime.now(UTC)
        self._served: list[_Served] = []
        self._control: list[Subscription] = []

    async def start(self) -> None:
        """Answer discovery.

        Raises:
            BusError: the connection is closed.
        """
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "PING": lambda: {"type": _TYPE + "ping_response"},
            "INFO": self._info,
            "STATS": self._stats,
        }
        with raised_as(BusError, f"cannot serve {self.name}"):
            for verb, body in answers.items():
                whole = f"$SRV.{verb}.{self.name}.{self.id}"
                for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{self.name}", whole):
                    self._control.append(await self._answer(subject, body))

    async def _answer(self, subject: str, body: Callable[[], dict[str, Any]]) -> Subscription:
        async def answer(message: Msg) -> None:
            identity = {
                "name": self.name,
                "id": self.id,
                "version": VERSION,
                "metadata": self._metadata,
            }
            await self._reply(message, Answer(msgspec.json.encode({**body(), **identity})))

        return await self._client.subscribe(subject, cb=answer)

    def _info(self) -> dict[str, Any]:
        return {
            "type": _TYPE + "info_response",
            "description": self._description,
            "endpoints": [served.info() for served in self._served],
        }

    def _stats(self) -> dict[str, Any]:
        return {
            "type": _TYPE + "stats_response",
            "started": self._started_at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "endpoints": [served.stats() for served in self._served],
        }

    async def add(self, endpoints: Sequence[Endpoint]) -> Callable[[], Awaitable[None]]:
        """Serve more endpoints; they are reachable when this returns, or after the reconnect.

        Returns a function that drains just these.

        Raises:
            BusError: the connection is closed.
        """
        added: list[_Served] = []
        with raised_as(BusError, f"cannot serve {self.name}"):
            for endpoint in endpoints:
                served = _Served(
                    endpoint, self._names.absolute(endpoint.subject), endpoint.queue or self.name
                )
                served.subscription = await self._client.subscribe(
                    served.subject, queue=served.queue, cb=self._dispatcher(served)
                )
                added.append(served)
                self._served.append(served)
            await heed(self._client.settle())

        async def remove() -> None:
            await self._drain(added)
            self._served = [served for served in self._served if served not in added]

        return remove

    def _dispatcher(self, served: _Served) -> Callable[[Msg], Awaitable[None]]:
        async def dispatch(message: Msg) -> None:
            started = time.perf_counter_ns()
            served.requests += 1
            try:
                result = served.endpoint.handle(
                    Call(self._names.relative(message.subject), message.data, message.headers or {})
                )
                if not isinstance(result, Answer):
                    if len(served.running) >= MAX_IN_FLIGHT:
                        if inspect.iscoroutine(result):
                            result.close()
                        raise busy("too many requests in flight; try again")
                    task = asyncio.create_task(self._finish(served, message, result, started))
                    served.running.add(task)
                    task.add_done_callback(served.running.discard)
                    return
            except Exception as error:
                await self._fail(served, message, error, started)
                return
            served.finish(started, None)
            await self._reply(message, result)

        return dispatch

    async def _finish(
        self, served: _Served, message: Msg, result: Awaitable[Answer], started: int
    ) -> None:
        try:
            answer = await result
        except asyncio.CancelledError:
            # Stopped before it was done, or what it waited for was.
            gone = RequestError(503, "interrupted while the service was stopping; try again")
            await self._fail(served, message, gone, started)
            raise
        except Exception as error:
            await self._fail(served, message, error, started)
        else:
            served.finish(started, None)
            await self._reply(message, answer)

    async def _fail(self, served: _Served, message: Msg, error: Exception, started: int) -> None:
        if not isinstance(error, RequestError):
            self._on_bad_message(message.subject, error)
            log.debug("endpoint_failed", subject=message.subject, exc_info=error)
            error = RequestError(500, "internal error; the service's log says more")
        elif error.code == 400:
            self._on_bad_message(message.subject, error)
        served.finish(started, error)
        text = " ".join(error.text.split())[:500].encode("ascii", "replace").decode()
        headers = {"Nats-Service-Error": text, "Nats-Service-Error-Code": str(error.code)}
        if error.retry_after_seconds is not None:
            headers["Fleet-Retry-After"] = f"{error.retry_after_seconds:g}"
        await self._reply(message, Answer(b"", headers))

    async def _reply(self, message: Msg, answer: Answer) -> None:
        if not message.reply:
            return
        if message.reply.startswith(self._closed_to_replies):
            self._on_bad_message(message.subject, ValueError("reply address is not an inbox"))
            return
        if self._client.answer(message.reply, answer.payload, answer.headers):
            return
        size = size_on_wire(answer.payload, answer.headers)
        if size > self._client.max_payload:
            answer = Answer(
                b"",
                {
                    "Nats-Service-Error": f"the answer has {size} bytes, more than the server "
                    "lets through; ask for less (limit)",
                    "Nats-Service-Error-Code": "413",
                },
            )
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(
                message.reply, answer.payload, headers=dict(answer.headers) or None
            )

    async def stop(self) -> None:
        """Leave discovery, take no more requests, answer those accepted.

        What is not done after 5 s is interrupted and answered with 503.
        """
        for subscription in self._control:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        self._control.clear()
        await self._drain(self._served)
        self._served = []

    async def _drain(self, served: Sequence[_Served]) -> None:
        subscriptions = [s.subscription for s in served if s.subscription is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(
                    *(self._client.retire(subscription) for subscription in subscriptions),
                    return_exceptions=True,
                )
                while running := [task for s in served for task in s.running]:
                    await asyncio.wait(running)
                with contextlib.suppress(nats.errors.Error):
                    await heed(self._client.settle())
        for task in (late := [task for s in served for task in s.running]):
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
