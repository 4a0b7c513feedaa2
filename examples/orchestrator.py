"""Carry out scaling advice exactly once, also when killed in the middle; nats-py and stdlib only.

    NATS_URL=... python examples/orchestrator.py [--allow-simulated]    # keeps two files here

Advice comes in order, one at a time, and is acknowledged last: what was not finished comes again.
Nothing is done twice even so: the journal has one line for each advice, written before the act;
the target is absolute; JetStream drops events it has. Put your `kubectl scale` in place of `act`.
"""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
from nats.js.api import ConsumerConfig

STATE, JOURNAL = Path("replicas.json"), Path("journal.jsonl")


def replicas() -> dict[str, int]:
    return dict(json.loads(STATE.read_text())) if STATE.exists() else {}


def act(pool: str, target: int) -> None:
    """Set the pool's replicas, here in a file."""
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps({**replicas(), pool: target}))
    new.replace(STATE)


def decide(advice: dict[str, Any]) -> dict[str, Any]:
    """What the journal says of this advice, or else a new decision, written there at once."""
    for line in JOURNAL.read_text().splitlines() if JOURNAL.exists() else ():
        if (plan := dict(json.loads(line)))["key"] == advice["idempotency_key"]:
            return plan
    refused = ""
    if advice["simulated"] is not False and "--allow-simulated" not in sys.argv:
        refused = "the evidence is simulated"
    elif datetime.now(UTC) >= datetime.fromisoformat(advice["expires_at"]):
        refused = "expired"
    before = replicas().get(advice["pool"], advice["replicas_from"])
    plan = {"key": advice["idempotency_key"], "refused": refused, "before": before}
    with JOURNAL.open("a") as file:
        file.write(json.dumps(plan) + "\n")
    return plan


async def carry_out(stream: nats.js.JetStreamContext, advice: dict[str, Any]) -> None:
    async def say(subject: str, **fields: object) -> None:
        copied = {name: advice[name] for name in ("pool", "recommendation_id", "simulated")}
        by, at = "examples/orchestrator.py", datetime.now(UTC).isoformat()
        family, _, word = subject.partition(".")
        if family == "decision":
            event = {**copied, **fields, "verdict": word, "decided_by": by, "decided_at": at}
        else:
            step = {"phase": word, "executed_by": by, "observed_at": at, "dry_run": False}
            event = {**copied, **fields, **step, "idempotency_key": advice["idempotency_key"]}
        once = {"Nats-Msg-Id": f"{advice['recommendation_id']}.{subject}"}
        target = f"fleet.v1.{subject}.{advice['pool']}"
        await stream.publish(target, json.dumps(event).encode(), headers=once)

    plan = decide(advice)
    if plan["refused"]:
        await say("decision.rejected", reason=plan["refused"])
        return
    for subject in ("decision.accepted", "execution.requested", "execution.started"):
        await say(subject)
    try:
        act(advice["pool"], advice["replicas_to"])
    except OSError as error:
        await say("execution.failed", error=str(error))
    else:
        change = {"replicas_before": plan["before"], "replicas_after": advice["replicas_to"]}
        await say("execution.succeeded", **change)


async def complain(error: Exception) -> None:
    print(f"nats: {error}", file=sys.stderr)


async def main() -> None:
    url = os.environ.get("NATS_URL", "")
    if (user := urlsplit(url).username) is None:
        sys.exit("NATS_URL has no user: whoever acts on advice must know that it is genuine")
    client = await nats.connect(
        url,
        name="orchestrator",
        error_cb=complain,
        max_reconnect_attempts=-1,
        inbox_prefix=f"_INBOX_{user}",  # nobody else may listen there
    )
    stream = client.jetstream()
    work = await stream.pull_subscribe(
        "fleet.v1.recommendation.>",
        durable="orchestrator",
        config=ConsumerConfig(max_ack_pending=1, ack_wait=30),  # one at a time, in order
    )
    while True:
        try:
            (message,) = await work.fetch(1, timeout=5)
            try:
                await carry_out(stream, json.loads(message.data))
            except (ValueError, KeyError, TypeError, RecursionError, nats.errors.BadSubjectError):
                await message.term()  # not advice: it would come again for ever
            else:
                await message.ack_sync()
        except nats.errors.TimeoutError:
            continue  # nothing new; or no answer, and then the advice comes again


if __name__ == "__main__":
    asyncio.run(main())
