import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from handlers.settings import UtilizationSettings
from handlers.utilization.handler import UtilizationHandler
from handlers.utilization.means import Metrics
from schemas.analysis import Scope, Utilization
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.units import SECOND_NS
from tests.support.samples import START_NS, at, engine, gpu, host


def judged(
    messages: Iterable[Metrics], scope: Scope = "node", seconds: float = 1.0
) -> Utilization | None:
    """What the handler says about these messages, all of one instant, `seconds` later."""
    handler = UtilizationHandler(UtilizationSettings(), scope)
    for message in messages:
        handler.handle(message, at(0))
    emits = handler.tick(at(seconds))
    assert len(emits) <= 1
    if not emits:
        return None
    assert isinstance(emits[0].message, Utilization)
    return emits[0].message


def test_an_idle_host_is_healthy_and_wasteful() -> None:
    judgement = judged([host(cpu=0.05, memory=0.05)])

    assert judgement is not None
    assert (judgement.level, judgement.health) == ("idle", "healthy")
    assert judgement.efficiency_ratio == pytest.approx(0.05 / 0.6)


def test_one_hot_gpu_is_found_among_idle_ones() -> None:
    idle = [gpu(f"g{i}", utilization_ratio=0.0, memory_utilization_ratio=0.0) for i in range(7)]
    hot = gpu("hot", utilization_ratio=0.99, memory_utilization_ratio=0.5)

    judgement = judged([*idle, hot])

    assert judgement is not None
    assert [(b.resource, b.resource_id, b.severity) for b in judgement.bottlenecks] == [
        ("gpu", "hot", "critical")
    ]
    assert judgement.level == "idle"  # the mean of all eight is 0.12
    assert [use.state for use in judgement.gpus] == ["idle"] * 7 + ["active"]


def test_the_primary_bottleneck_comes_first() -> None:
    judgement = judged(
        [host(cpu=0.96, memory=0.94), gpu(utilization_ratio=0.97), engine(kv=0.99)],
    )

    assert judgement is not None
    assert [(b.resource, b.severity) for b in judgement.bottlenecks] == [
        ("kv_cache", "critical"),
        ("cpu", "critical"),
        ("gpu", "warning"),  # 0.97 is below its critical 0.98
        ("memory", "warning"),
    ]


def test_nothing_measured_is_unknown() -> None:
    judgement = judged([host(), gpu()])

    assert judgement is not None
    assert (judgement.level, judgement.health, judgement.efficiency_ratio) == (None, None, None)
    assert judgement.resources == []
    assert [use.state for use in judgement.gpus] == [None]


def test_cpu_memory_and_gpus_have_efficiencies_of_their_own() -> None:
    judgement = judged([host(cpu=0.65, memory=0.9), gpu(utilization_ratio=0.35)])

    assert judgement is not None
    assert judgement.efficiency_ratio == pytest.approx(0.5)  # the GPU is the scarce one
    assert {use.resource: use.efficiency_ratio for use in judgement.resources} == {
        "cpu": 1.0,
        "memory": pytest.approx(0.8),
        "gpu": pytest.approx(0.5),
    }


def test_gpu_memory_and_kv_caches_have_no_best_use() -> None:
    judgement = judged([gpu(memory_utilization_ratio=0.9), engine(kv=0.5), loaded(disk=0.5)])

    assert judgement is not None
    assert {use.resource: use.efficiency_ratio for use in judgement.resources} == {
        "gpu_memory": None,
        "kv_cache": None,
        "disk": None,
    }


def loaded(
    node: str = "n1",
    *,
    disk: float | None = None,
    network: float | None = None,
    cpu: float | None = None,
    pool: str | None = "chat",
) -> HostMetrics:
    """A host with a disk so busy beside an idle one, and an interface of 1 Gbit/s so full."""
    return host(
        node,
        cpu=cpu,
        pool=pool,
        disks_io=None if disk is None else {"sda": 0.0, "nvme0n1": disk},
        links=None if network is None else {"eth0": (10**9, network * 10**9 / 8, 0.0)},
    )


def test_a_busy_disk_and_a_full_network_are_bottlenecks_among_the_others() -> None:
    judgement = judged([loaded(disk=0.84, network=0.96, cpu=0.955)])

    assert judgement is not None
    assert [(b.resource, b.severity, b.threshold_ratio) for b in judgement.bottlenecks] == [
        ("network", "critical", 0.95),
        ("cpu", "critical", 0.95),
        ("disk", "warning", 0.80),
    ]
    assert [b.value_ratio for b in judgement.bottlenecks] == pytest.approx([0.96, 0.955, 0.84])
    assert judgement.health == "critical"


@pytest.mark.parametrize(
    ("resource", "value", "severity"),
    [
        ("disk", 0.79, None),
        ("disk", 0.80, "warning"),
        ("disk", 0.95, "critical"),
        ("network", 0.74, None),
        ("network", 0.75, "warning"),
        ("network", 0.95, "critical"),
    ],
)
def test_disks_and_networks_have_thresholds(
    resource: str, value: float, severity: str | None
) -> None:
    judgement = judged([loaded(**{resource: value})])  # type: ignore[arg-type]  # one of its names

    assert judgement is not None
    assert [b.severity for b in judgement.bottlenecks] == ([severity] if severity else [])


@pytest.mark.parametrize("scope", ["pool", "fleet"])
def test_the_node_with_the_busy_disk_is_named_and_the_mean_is_judged(scope: Scope) -> None:
    nodes = [loaded("n1", disk=0.9, network=0.8), loaded("n2", disk=0.1, network=0.8)]

    judgement = judged(nodes, scope)

    assert judgement is not None
    assert [(b.resource, b.resource_id) for b in judgement.bottlenecks] == [
        ("disk", "n1"),
        ("network", None),
        ("network", "n1"),
        ("network", "n2"),
    ]
    assert {use.resource: use.mean_ratio for use in judgement.resources} == {
        "disk": pytest.approx(0.5),
        "network": pytest.approx(0.8),
    }


def test_a_disk_alone_does_not_make_it_known_how_busy_a_machine_is() -> None:
    judgement = judged([loaded(disk=0.9)])

    assert judgement is not None
    assert (judgement.level, judgement.efficiency_ratio) == (None, None)
    assert judgement.health == "degraded"


def test_an_unknown_gpu_is_not_replaced_by_the_cpu() -> None:
    judgement = judged([host(cpu=0.8, memory=0.5), gpu()])

    assert judgement is not None
    assert (judgement.level, judgement.efficiency_ratio) == (None, None)
    assert judgement.health == "degraded"  # the CPU bottleneck is real all the same


def test_a_null_between_samples_does_not_pull_the_mean_down() -> None:
    judgement = judged([host(cpu=0.6), host(), host(cpu=0.6)])

    assert judgement is not None
    assert judgement.resources[0].mean_ratio == pytest.approx(0.6)


def test_a_pool_is_judged_over_its_nodes_only() -> None:
    messages = [
        host("n1", cpu=0.9, pool="chat"),
        host("n2", cpu=0.1, pool="chat"),
        host("n3", cpu=0.9),
    ]

    judgement = judged(messages, "pool")

    assert judgement is not None
    assert (judgement.id, judgement.nodes) == ("chat", 2)
    use = judgement.resources[0]
    assert use.mean_ratio == pytest.approx(0.5)
    assert use.peak_ratio == 0.9
    assert [(b.resource_id, b.severity) for b in judgement.bottlenecks] == [("n1", "warning")]


def test_the_fleet_lists_no_gpus_and_its_worst_bottlenecks_only() -> None:
    messages = [gpu(f"g{i}", utilization_ratio=0.99) for i in range(100)]

    judgement = judged(messages, "fleet")

    assert judgement is not None
    assert (judgement.id, judgement.gpus, len(judgement.bottlenecks)) == ("all", [], 32)
    assert judgement.health == "critical"


def test_simulated_in_simulated_out_until_it_leaves_the_window() -> None:
    handler = UtilizationHandler(UtilizationSettings(), "fleet")
    handler.handle(host("s", cpu=0.5, simulated=True), at(0))

    judgements = []
    for second in range(0, 130, 5):
        handler.handle(host("r", cpu=0.5), at(second))
        judgements += [emit.message for emit in handler.tick(at(second + 1))]

    assert [m.simulated for m in judgements if isinstance(m, Utilization)] == [True, False, False]


def test_without_a_change_it_publishes_once_a_minute() -> None:
    handler = UtilizationHandler(UtilizationSettings(), "node")

    published = []
    for second in range(0, 300, 5):
        handler.handle(host(cpu=0.6), at(second))
        published += [(second, emit.message_id) for emit in handler.tick(at(second))]

    assert [second for second, _ in published] == [0, 60, 120, 180, 240]
    assert published[1][1] == f"utilization.node.n1.{at(60).ns}"


@pytest.mark.parametrize("centre", [0.2, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_a_noisy_signal_at_a_threshold_does_not_flap(centre: float) -> None:
    rng = random.Random(7)
    handler = UtilizationHandler(UtilizationSettings(), "node")

    published = 0
    for second in range(0, 3600, 5):
        noisy = min(1.0, max(0.0, rng.gauss(centre, 0.04)))
        handler.handle(host(cpu=noisy), at(second))
        published += len(handler.tick(at(second)))

    assert published <= 60 + 6  # one a minute, and a few real changes while the window fills


def test_a_change_is_published_at_once() -> None:
    handler = UtilizationHandler(UtilizationSettings(window_seconds=5), "node")
    handler.handle(host(cpu=0.6), at(0))
    handler.tick(at(0))
    handler.handle(host(cpu=0.97), at(5))

    emits = handler.tick(at(5))

    assert [emit.message.level for emit in emits if isinstance(emit.message, Utilization)] == [
        "critical"
    ]


def resting(**changed: Any) -> GpuMetrics:
    """A GPU with memory held and nothing running, of a node whose level stays `idle`."""
    rest = {"utilization_ratio": 0.0, "memory_utilization_ratio": 0.6}
    return gpu(pool="chat", **(rest | changed))


@pytest.mark.parametrize(
    ("change", "state"),
    [
        pytest.param({"utilization_ratio": 0.1}, "active", id="work begins"),
        pytest.param({"memory_utilization_ratio": 0.0}, "idle", id="memory is released"),
        pytest.param({"utilization_ratio": None}, None, id="activity is not measured any more"),
    ],
)
def test_another_state_of_a_gpu_is_published_at_once(
    change: dict[str, float | None], state: str | None
) -> None:
    handler = UtilizationHandler(UtilizationSettings(window_seconds=5), "node")
    handler.handle(resting(), at(0))
    (before,) = handler.tick(at(0))
    handler.handle(resting(**change), at(5))

    emits = handler.tick(at(5))

    assert isinstance(before.message, Utilization)
    assert [use.state for use in before.message.gpus] == ["idle_held"]
    assert [
        [use.state for use in emit.message.gpus]
        for emit in emits
        if isinstance(emit.message, Utilization)
    ] == [[state]]


def test_the_same_state_of_a_gpu_is_no_change() -> None:
    handler = UtilizationHandler(UtilizationSettings(), "node")

    published = []
    for second in range(0, 120, 5):
        handler.handle(resting(utilization_ratio=second % 4 / 100), at(second))
        published += [second for _ in handler.tick(at(second))]

    assert published == [0, 60]


@pytest.mark.parametrize("scope", ["pool", "fleet"])
def test_the_state_of_one_gpu_does_not_publish_a_pool_or_the_fleet(scope: Scope) -> None:
    handler = UtilizationHandler(UtilizationSettings(window_seconds=5), scope)
    handler.handle(resting(), at(0))
    handler.tick(at(0))
    handler.handle(resting(utilization_ratio=0.1), at(5))

    assert handler.tick(at(5)) == []


def test_a_restored_handler_does_not_publish_the_states_again() -> None:
    first, second = (UtilizationHandler(UtilizationSettings(), "node") for _ in range(2))
    for handler in (first, second):
        handler.handle(resting(), at(0))
    first.tick(at(0))

    second.restore(first.snapshot() or b"")

    assert second.tick(at(5)) == []


@pytest.mark.parametrize("scope", ["node", "pool", "fleet"])
def test_after_the_window_silence(scope: Scope) -> None:
    handler = UtilizationHandler(UtilizationSettings(), scope)
    handler.handle(host(cpu=0.6, pool="chat"), at(0))
    handler.tick(at(0))

    emits = [emit for second in range(60, 600, 5) for emit in handler.tick(at(second))]

    assert emits == []
    assert handler.snapshot() == b"[]"


def test_a_gpu_says_what_told_its_state() -> None:
    spinning = gpu(
        "spinning",
        utilization_ratio=1.0,
        sm_activity_ratio=0.01,
        memory_utilization_ratio=0.9,
        power_watts=100.0,
        power_limit_watts=700.0,
    )
    serving = gpu("serving", utilization_ratio=0.03, memory_utilization_ratio=0.9)

    judgement = judged([spinning, serving, engine(running=2)])

    assert judgement is not None
    assert [(use.gpu, use.state, use.source) for use in judgement.gpus] == [
        ("serving", "active", "engine"),
        ("spinning", "active", "engine"),
    ]
    assert [use.power_efficiency_ratio for use in judgement.gpus] == [None, 1.0]
    assert judgement.balance_ratio == pytest.approx(0.515 / 1.0)


def test_a_kernel_that_only_waits_holds_a_gpu_idle() -> None:
    spinning = gpu(utilization_ratio=1.0, sm_activity_ratio=0.01, memory_utilization_ratio=0.9)

    judgement = judged([spinning])

    assert judgement is not None
    assert [(use.state, use.source) for use in judgement.gpus] == [("idle_held", "sm_activity")]


def judged_seconds(
    monkeypatch: pytest.MonkeyPatch, cpu_by_second: Sequence[float], **settings: float
) -> list[int]:
    """At which seconds a node is judged whose host says so much every 5 s; ticks each 0.5 s."""
    handler = UtilizationHandler(UtilizationSettings(**settings), "node")  # type: ignore[arg-type]
    seconds: list[int] = []
    judge = UtilizationHandler._judge

    def counted(self: UtilizationHandler, key: str, group: Any, now_ns: int) -> Any:
        seconds.append((now_ns - START_NS) // SECOND_NS)
        return judge(self, key, group, now_ns)

    monkeypatch.setattr(UtilizationHandler, "_judge", counted)
    for number, cpu in enumerate(cpu_by_second):
        handler.handle(host(cpu=cpu), at(5 * number))
        for step in range(10):
            handler.tick(at(5 * number + step / 2 + 0.25))
    return seconds[1:]  # the first tick knows none before, and judges whatever there is


def test_a_calm_group_is_judged_every_10_s_and_one_that_changes_every_5_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = judged_seconds(monkeypatch, [0.1] * 20 + [1.0] * 20)

    gaps = [b - a for a, b in itertools.pairwise(seconds)]
    calm = [gap for second, gap in zip(seconds, gaps, strict=False) if 20 < second < 50]
    # From 0.1 to 1.0 in a minute the level changes four times, and each time it is looked at soon.
    changing = [gap for second, gap in zip(seconds, gaps, strict=False) if 100 < second < 170]
    assert set(gaps) == {5, 10}
    assert set(calm) == {10}
    assert changing.count(5) >= 4


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"window_seconds": 59.0}, id="a mean over less moves more"),
        pytest.param({"publish_seconds": 5.0}, id="it is to be said so often"),
    ],
)
def test_settings_may_ask_for_every_5_s(
    settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = judged_seconds(monkeypatch, [0.1] * 20, **settings)

    assert {b - a for a, b in itertools.pairwise(seconds)} == {5}


def test_many_groups_are_judged_at_instants_of_their_own_each_once_in_5_s() -> None:
    handler = UtilizationHandler(UtilizationSettings(publish_seconds=5), "node")
    nodes = [f"node-{number}" for number in range(200)]

    judged_at: dict[str, list[int]] = {node: [] for node in nodes}
    for step in range(31):
        for node in nodes:
            handler.handle(host(node=node, cpu=0.5), at(100 + step / 2))
        for emit in handler.tick(at(100 + step / 2)):
            judged_at[emit.message.id].append(step)  # type: ignore[attr-defined]

    later = {node: [step for step in steps if step] for node, steps in judged_at.items()}
    assert all(steps[0] == 0 for steps in judged_at.values())  # the first tick knows none before
    assert min(len(steps) for steps in later.values()) >= 2
    assert {b - a for steps in later.values() for a, b in itertools.pairwise(steps)} == {10}
    a_step = Counter(steps[-1] for steps in later.values())
    assert len(a_step) == 10
    assert max(a_step.values()) < 40
