"""Advice on a real stream from GPUs that are busy and tokens that come."""

import pytest

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from handlers import default_handlers
from handlers.admission import Admission
from handlers.runtime import HandlersRuntime
from handlers.settings import HandlersSettings, ScalingSettings
from schemas.scaling import Recommendation
from tests.support.advice import told
from tests.support.samples import engine, gpu
from tests.support.waiting import until_async

SETTINGS = HandlersSettings(
    scaling=ScalingSettings(
        gpu_busy_target_ratio=0.5,
        generation_target_tokens_per_second=100.0,
        up_hold_seconds=1.0,
        engine_ttl_seconds=2.0,
    )
)


@pytest.mark.parametrize(
    ("busy", "tokens_per_second", "reason", "replicas"),
    [
        pytest.param(0.95, 10.0, "gpu_busy_ratio", 4, id="GPUs: 2 * 0.95 / 0.5 = 3.8"),
        pytest.param(0.4, 150.0, "generation_tokens_per_second", 3, id="tokens: 2 * 150 / 100"),
    ],
)
async def test_gpus_and_tokens_ask_for_replicas(
    bus: Bus, busy: float, tokens_per_second: float, reason: str, replicas: int
) -> None:
    tokens = {"generation_tokens_per_second": tokens_per_second}
    samples = [
        sample
        for node in ("n1", "n2")
        for sample in (
            gpu(
                f"{node}g",
                node,
                pool="chat",
                utilization_ratio=busy,
                utilization_source="gpm_sm_activity",
                memory_utilization_ratio=0.9,
            ),
            engine("e", node, waiting=0, kv=0.5, running=4, **tokens),  # type: ignore[arg-type]
        )
    ]
    found: list[Recommendation] = []

    async def advised() -> bool:
        """Looked at after each further sample of every GPU and engine."""
        for sample in samples:
            await bus.publish(sample)
        found[:] = await told(bus, Recommendation)
        return bool(found)

    leases = BucketLeases(bus.bucket("lease"), "h1")
    async with HandlersRuntime(
        publisher=bus,
        subscriber=bus,
        state=bus.bucket("state"),
        leases=leases,
        make_handlers=lambda: default_handlers(SETTINGS),
        slots=2,
        name="h1",
        registered=lambda: (),
        admission=Admission(1000, 1000),
    ):
        await until_async(advised)
    await leases.close()

    advice = found[0]
    assert (advice.action, advice.reason, advice.replicas_to) == ("scale_up", reason, replicas)
    values = {one.signal: one for one in advice.evidence}
    assert values["generation_tokens_per_second"].value == tokens_per_second
    if reason == "gpu_busy_ratio":
        assert values[reason].value == pytest.approx(busy)
        assert values[reason].sources == ["gpm_sm_activity"]
