"""Advice, decisions and executions as tests write them."""

import time
from typing import Any

import msgspec

from agent.bus import Bus
from schemas.life import decision_id, step_id
from schemas.message import Message
from schemas.protocols import Delivery
from schemas.scaling import Decision, Execution, Recommendation
from schemas.units import SECOND_NS, instant

HOUR_NS = 3600 * SECOND_NS


def advice(number: int = 1, *, stands_ns: int = HOUR_NS, **fields: Any) -> Recommendation:
    """Scale pool `chat` up from 2 to 3; fresh, and standing for an hour."""
    now_ns = time.time_ns()
    pool, action = fields.get("pool", "chat"), fields.get("action", "scale_up")
    name = f"{pool}.{action}.{number}"
    values: dict[str, Any] = {
        "action": action,
        "pool": pool,
        "recommendation_id": name,
        "idempotency_key": fields.get("recommendation_id", name),
        "decided_at": instant(now_ns),
        "expires_at": instant(now_ns + stands_ns),
        "replicas_from": 2,
        "replicas_to": 3,
        "reason": "requests_waiting",
        "text": "more",
        "evidence": [],
        "confidence_ratio": 1.0,
        "risk": "low",
        "effective_after_seconds": 0.0,
    }
    return msgspec.convert(values | fields, Recommendation)


def decision(of: Recommendation, verdict: str = "accepted", **fields: Any) -> Decision:
    """`operator:ann` decided."""
    values = {
        "verdict": verdict,
        "pool": of.pool,
        "recommendation_id": of.recommendation_id,
        "decided_at": of.decided_at,
        "decided_by": "operator:ann",
    }
    return msgspec.convert(values | fields, Decision)


def step(of: Recommendation, phase: str = "requested", **fields: Any) -> Execution:
    """A step of the execution for real, by default its request to the executor."""
    values = {
        "phase": phase,
        "pool": of.pool,
        "recommendation_id": of.recommendation_id,
        "idempotency_key": of.idempotency_key,
        "observed_at": of.decided_at,
        "executed_by": "executor" if phase == "requested" else "executor:x1",
        "dry_run": False,
    }
    return msgspec.convert(values | fields, Execution)


def delivered(message: Message, stored_ns: int) -> Delivery:
    """As the stream gives it to who reads it."""
    return Delivery(message.subject(), msgspec.json.encode(message), {}, 1, stored_ns)


async def tell(bus: Bus, *messages: Message) -> None:
    """Publish each as its author does."""
    for message in messages:
        if isinstance(message, Recommendation):
            name = message.recommendation_id
        elif isinstance(message, Execution):
            name = step_id(message)
        else:
            assert isinstance(message, Decision)
            is_answer = message.verdict in ("accepted", "rejected")
            name = f"{message.recommendation_id}.{message.verdict}"
            name = decision_id(message.recommendation_id) if is_answer else name
        await bus.publish(message, message_id=name)


async def told(bus: Bus, kind: type[Any]) -> list[Any]:
    """All messages of one type in the stream."""
    decoder = msgspec.json.Decoder(kind)
    deliveries = bus.read("RECOMMENDATIONS", subject=kind.pattern())
    return [decoder.decode(delivery.payload) async for delivery in deliveries]
