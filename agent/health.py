"""The health of the installation, from the registry; and of one instance, from its own probes."""

from collections.abc import Callable, Iterable, Sequence

from agent.registry import STALE_HEARTBEATS, age_seconds, is_stale
from schemas.api import HealthReply, InstanceHealth, Nothing, RoleHealth
from schemas.lifecycle import ComponentState, InstanceRecord, Role
from schemas.protocols import Call, Endpoint, json_endpoint
from schemas.units import SECOND_NS, instant, to_ns

NAMES = ("root", "basic", "detailed", "ready", "live")
_WORST: tuple[ComponentState, ...] = ("off", "ok", "degraded", "failed")


def worst(states: Iterable[ComponentState]) -> ComponentState:
    """The most serious of `states`; ok when there are none. Parts that are off do not count."""
    return max((s for s in states if s != "off"), key=_WORST.index, default="ok")


def instance_health(record: InstanceRecord, now_ns: int) -> InstanceHealth:
    """One instance as seen now: what it last said of itself, and how long ago."""
    state = worst(component.state for component in record.components)
    stale = is_stale(record, now_ns)
    return InstanceHealth(
        role=record.role,
        instance=record.instance,
        node=record.node,
        ready=record.ready and not stale,
        state="failed" if stale else state,
        age_seconds=round(age_seconds(record, now_ns), 3),
        component_age_seconds={
            component.name: round(max(0.0, (now_ns - to_ns(component.probed_at)) / SECOND_NS), 3)
            for component in record.components
        },
        record=record,
    )


def role_health(role: Role, instances: Sequence[InstanceHealth], *, expected: bool) -> RoleHealth:
    """One role: ready when at least one instance is; its state is its best instance's."""
    mine = [i for i in instances if i.role == role]
    if not mine:
        state: ComponentState = "failed" if expected else "off"
        text = f"no {role} is registered" if expected else "not expected, not there"
    else:
        state = min((i.state for i in mine), key=_WORST.index)
        text = "; ".join(trouble for instance in mine for trouble in _troubles(instance))
    return RoleHealth(
        role=role,
        expected=expected,
        instances=len(mine),
        ready=any(i.ready for i in mine),
        state=state,
        text=text,
    )


def _troubles(instance: InstanceHealth) -> list[str]:
    """What is wrong with one instance; of one that is not heard any more only that."""
    record = instance.record
    if instance.age_seconds > STALE_HEARTBEATS * record.heartbeat_seconds:
        return [f"{instance.instance} is silent"]
    return [
        f"{instance.instance}: {component.name} {component.state} ({component.text})"
        for component in record.components
        if component.state in ("degraded", "failed")
    ]


def installation_health(
    records: Iterable[InstanceRecord], expected: Sequence[Role], now_ns: int, answered_by: str
) -> HealthReply:
    """Everything: roles expected and present, their instances, each with its age."""
    instances = [instance_health(record, now_ns) for record in records]
    present = {i.role for i in instances}
    roles = [
        role_health(role, instances, expected=role in expected)
        for role in dict.fromkeys((*expected, *sorted(present)))
    ]
    needed = [role for role in roles if role.expected]
    ready = all(role.ready for role in needed)
    state = worst(role.state for role in needed)
    if not ready or state == "failed":
        status = "critical"
    elif state == "degraded" or any(i.state != "ok" for i in instances):
        status = "degraded"
    else:
        status = "healthy"
    return HealthReply(
        answered_at=instant(now_ns),
        answered_by=answered_by,
        status=status,  # type: ignore[arg-type]  # one of the three literals above
        live=True,
        ready=ready,
        roles=roles,
        instances=instances,
    )


def _cut(name: str, health: HealthReply) -> HealthReply:
    """What a name shows: `detailed` all, `basic` and `ready` the roles, the others neither."""
    roles = health.roles if name in ("basic", "ready", "detailed") else []
    instances = health.instances if name == "detailed" else []
    return HealthReply(
        answered_at=health.answered_at,
        answered_by=health.answered_by,
        status=health.status,
        live=health.live,
        ready=health.ready,
        roles=roles,
        instances=instances,
    )


def health_endpoints(
    own: Callable[[], InstanceRecord],
    everyone: Callable[[], Iterable[InstanceRecord]],
    expected: Sequence[Role],
    clock: Callable[[], int],
) -> list[Endpoint]:
    """`api.health.<name>` for the installation, `….<role>.<instance>` for this service.

    The service's counters stand in the ADR-32 statistics of its own `detailed`.
    """
    record = own()
    who = f"{record.role}.{record.instance}"
    endpoints = []
    for name in NAMES:

        def of_all(_request: Nothing, _call: Call, name: str = name) -> HealthReply:
            health = installation_health(everyone(), expected, clock(), who)
            return _cut(name, health)

        def of_one(_request: Nothing, _call: Call, name: str = name) -> HealthReply:
            fresh = own()
            health = installation_health([fresh], [fresh.role], clock(), who)
            return _cut(name, health)

        endpoints.append(
            json_endpoint(
                f"health-{name}",
                f"api.health.{name}",
                Nothing,
                of_all,
                reply_type=HealthReply,
                queue="health",
            )
        )
        endpoints.append(
            json_endpoint(
                f"health-{name}-here",
                f"api.health.{name}.{who}",
                Nothing,
                of_one,
                reply_type=HealthReply,
                statistics=(lambda: {"counters": own().counters}) if name == "detailed" else dict,
            )
        )
    return endpoints
