"""Evidence for insights, and a language model's HTTP endpoint on a real socket."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

from schemas.analysis import Alert, Bottleneck, ResourceUse, Scope, Severity, Utilization
from schemas.scaling import Evidence, Recommendation
from schemas.spending import Opportunity, Waste
from schemas.units import instant
from tests.support.program import ROOT
from tests.support.s3_double import http
from tests.support.samples import START_NS
from tests.support.wire import impostor

WIRE = ROOT / "tests/wire"


def use(
    scope: Scope = "pool",
    name: str = "chat",
    *,
    gpu: float = 0.8537,
    decided_ns: int = START_NS,
    bottlenecks: tuple[str, ...] = (),
    **fields: Any,
) -> Utilization:
    """A judgement of use; `bottlenecks`: parts whose GPU is one."""
    return Utilization(
        scope=scope,
        id=name,
        decided_at=instant(decided_ns),
        window_seconds=60,
        level="high",
        health="healthy",
        efficiency_ratio=0.9,
        resources=[ResourceUse(resource="gpu", mean_ratio=gpu, peak_ratio=0.99, level="high")],
        bottlenecks=[
            Bottleneck(
                resource="gpu",
                resource_id=part,
                severity="critical",
                value_ratio=0.985,
                threshold_ratio=0.98,
            )
            for part in bottlenecks
        ],
        nodes=3,
        **fields,
    )


def alert(
    node: str = "gpu-node-17",
    *,
    severity: Severity = "critical",
    transition: str = "raised",
    value: float | None = 91.0,
    part: str | None = None,
    pool: str | None = "chat",
    silenced_by: str | None = None,
    rule: str = "gpu_temperature",
    metric: str = "gpu.temperature_celsius",
) -> Alert:
    """A hot GPU, unless another rule is given."""
    return Alert(
        transition=transition,  # type: ignore[arg-type]
        severity=severity,
        scope="node",
        id=node,
        rule=rule,
        part=part,
        alert_id=f"node.{node}.{rule}.{START_NS}",
        text=f"gpu.temperature_celsius of {node} is 91",
        metric=metric,
        value=value,
        threshold=90.0,
        clear_threshold=85.0,
        for_seconds=60.0,
        raised_at=instant(START_NS),
        decided_at=instant(START_NS),
        pool=pool,
        silenced_by=silenced_by,
    )


def advice(pool: str = "chat", *, decided_ns: int = START_NS) -> Recommendation:
    """More replicas for a pool."""
    return Recommendation(
        action="scale_up",
        pool=pool,
        recommendation_id=f"{pool}.scale_up.{decided_ns}",
        idempotency_key=f"{pool}.scale_up.{decided_ns}",
        decided_at=instant(decided_ns),
        expires_at=instant(decided_ns + 600 * 10**9),
        replicas_from=4,
        replicas_to=6,
        reason="requests_waiting",
        text="",
        evidence=[Evidence(signal="requests_waiting", value=12.5, threshold=4.0)],
        confidence_ratio=0.75,
        risk="low",
        effective_after_seconds=120.0,
        saving_usd_per_hour=-5.5,
    )


def waste(
    scope: Scope = "pool", name: str = "chat", *, decided_ns: int = START_NS, **figures: Any
) -> Waste:
    """Eight GPUs at 4 $ an hour, of which 22 of 32 $ are wasted; `figures` replace some."""
    said = msgspec.json.decode((WIRE / "waste.json").read_bytes(), type=Waste)
    return msgspec.structs.replace(
        said,
        scope=scope,
        id=name,
        decided_at=instant(decided_ns),
        figures=msgspec.structs.replace(said.figures, **figures),
    )


def opportunity(
    scope: Scope = "pool", name: str = "chat", *, decided_ns: int = START_NS
) -> Opportunity:
    """Three savings: two idle GPUs, two under-used ones, one that is held."""
    said = msgspec.json.decode((WIRE / "opportunity.json").read_bytes(), type=Opportunity)
    return msgspec.structs.replace(said, scope=scope, id=name, decided_at=instant(decided_ns))


def completion(content: str, *, finish: str = "stop", **fields: Any) -> bytes:
    """An answer with HTTP 200; `fields` replace those of the body."""
    body: dict[str, Any] = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000},
    }
    headers = {"Content-Type": "application/json"}
    return http(200, msgspec.json.encode(body | fields), headers)


def explanation(summary: str, *findings: tuple[str, list[str]]) -> str:
    """What a model writes that keeps to the schema."""
    rows = [{"text": text, "facts": facts} for text, facts in findings]
    return msgspec.json.encode({"summary": summary, "findings": rows}).decode()


Give = Callable[[int], bytes | Awaitable[bytes]]


class ModelEndpoint:
    """Answers the n-th question, from 0, by `give(n)`; keeps what was asked."""

    def __init__(self, give: Give | bytes) -> None:
        self.give: Give = (lambda _: give) if isinstance(give, bytes) else give
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self._port = 0
        self._open = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """What stands before `/chat/completions`."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        self._port = await self._open.enter_async_context(impostor(self._serve))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                number = len(self.paths)
                self.paths.append(first.split(" ")[1])
                self.headers.append(headers)
                self.bodies.append(msgspec.json.decode(body))
                given = self.give(number)
                answer = given if isinstance(given, bytes) else await given
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer:
                    return
