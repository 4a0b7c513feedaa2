"""Which namespaces the caches have, for who asked for one that nobody serves."""

import difflib

import msgspec

from agent import human
from agent.bus import Bus
from schemas.api import HealthReply, InstanceHealth
from schemas.protocols import RequestError

ASK_SECONDS = 3.0
NOBODY = "nobody serves"
LEASE = ".lease"
"""A cache has a component of this name for each namespace: owner, standby, or why neither."""
MAX_NAMED = 10


async def explained(bus: Bus, namespace: str, error: RequestError) -> RequestError:
    """The error of a request to this namespace, and why nobody serves it, as health knows; or it.

    Of another error, and where health does not answer this user, nothing is added.
    """
    if error.code != 503 or NOBODY not in error.text:
        return error
    try:
        answer = await bus.request("api.health.detailed", timeout_seconds=ASK_SECONDS)
    except RequestError:
        return error
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    caches = [one for one in health.instances if one.role == "cache"]
    return RequestError(error.code, f"{error.text}; {_why(namespace, caches)}")


def _why(namespace: str, caches: list[InstanceHealth]) -> str:
    if not caches:
        return "no cache is there: start `resource-agent up`, or `run cache`"
    said: dict[str, list[str]] = {}
    for one in caches:
        heard = f"cache {one.instance}, heard {human.duration(one.age_seconds)} ago"
        for part in one.record.components:
            if part.name.endswith(LEASE):
                told = f"{heard}: {part.state} ({part.text})"
                said.setdefault(part.name.removesuffix(LEASE), []).append(told)
    if namespace in said:
        return "; ".join(said[namespace])
    names = sorted(said)
    near = difflib.get_close_matches(namespace, names, n=3, cutoff=0.5)
    if near:
        return f"no cache has namespace {namespace}: do you mean {' or '.join(near)}?"
    if not names:
        return f"no cache has namespace {namespace}: none has any"
    more = ", …" if len(names) > MAX_NAMED else ""
    return f"no cache has namespace {namespace}; there are {', '.join(names[:MAX_NAMED])}{more}"
