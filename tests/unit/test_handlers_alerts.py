import msgspec
import pytest

from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.wording import value_text
from schemas.alerts import AlertRule
from schemas.metrics import GpuMetrics
from tests.support.alerting import alerts_handler, played, transitions
from tests.support.samples import START_NS, at, gpu, host


def hot(celsius: float | None, gpu_id: str = "g0", slowdown: float | None = 87.0) -> GpuMetrics:
    return gpu(gpu_id, temperature_celsius=celsius, temperature_slowdown_celsius=slowdown)


@pytest.mark.parametrize(
    ("celsius", "expected"),
    [
        pytest.param(81.9, [], id="below slowdown - 5"),
        pytest.param(82.0, [("raised", "warning")], id="at slowdown - 5"),
        pytest.param(86.9, [("raised", "warning")], id="just below slowdown"),
        pytest.param(87.0, [("raised", "critical")], id="at slowdown"),
    ],
)
def test_temperature_is_judged_against_the_gpus_own_slowdown(
    celsius: float, expected: list[tuple[str, str]]
) -> None:
    assert transitions(played((0, hot(celsius)), (30, hot(celsius)))) == expected


@pytest.mark.parametrize(
    ("second", "count"), [pytest.param(29.9, 0, id="not yet"), pytest.param(30, 1, id="held")]
)
def test_the_condition_must_have_held(second: float, count: int) -> None:
    assert len(played((0, hot(85)), (second, hot(85)))) == count


def test_one_sample_to_the_contrary_starts_the_hold_anew() -> None:
    assert played((0, hot(85)), (20, hot(70)), (25, hot(85)), (50, hot(85))) == []


def test_a_gap_starts_the_hold_anew() -> None:
    assert played((0, hot(85)), (60, hot(85))) == []


def test_unknown_values_neither_raise_nor_clear() -> None:
    raised = [(0, hot(85)), (30, hot(85))]

    assert transitions(played(*raised, (40, hot(None)), (50, hot(10, slowdown=None)))) == [
        ("raised", "warning")
    ]


def test_raised_once_updated_on_severity_cleared_once() -> None:
    alerts = played(
        *((second, hot(85)) for second in range(0, 60, 5)),  # warning, raised at 30
        *((second, hot(90)) for second in range(60, 120, 5)),  # critical, updated at 90
        (120, hot(84)),  # still within 5 degrees of slowdown
        (125, hot(81)),  # back to warning
        (130, hot(77)),  # at the clear threshold: stays
        (135, hot(76.9)),  # cleared
        (140, hot(60)),
    )

    assert transitions(alerts) == [
        ("raised", "warning"),
        ("updated", "critical"),
        ("updated", "warning"),
        ("cleared", "warning"),
    ]
    assert {alert.alert_id for alert in alerts} == {
        f"node.n1.gpu_temperature-g0.{START_NS + 30 * 10**9}"
    }
    assert [(a.threshold, a.clear_threshold) for a in alerts] == [
        (82.0, 77.0),
        (87.0, 77.0),
        (82.0, 77.0),
        (82.0, 77.0),
    ]
    assert "76.9" in alerts[-1].text


def test_message_ids_differ_even_when_a_severity_comes_twice() -> None:
    handler = alerts_handler()
    ids: list[str] = []
    for second in range(0, 500, 5):
        celsius = 90 if second // 100 % 2 else 80  # 80 keeps a warning alive
        ids += [e.message_id for e in handler.handle(hot(celsius), at(second))]

    assert len(ids) == len(set(ids)) == 4


def test_a_noisy_value_at_the_threshold_gives_one_alert() -> None:
    steps = [(second, hot(82 + (second % 10) / 2.5 - 1)) for second in range(0, 600, 5)]
    steady = [(600 + second, hot(82.5 - (second % 10) / 2.5)) for second in range(0, 600, 5)]

    assert played(*steps) == []  # never held for 30 s
    assert transitions(played((0, hot(83)), (30, hot(83)), *steady)) == [("raised", "warning")]


def test_two_gpus_are_two_alerts_on_two_subjects() -> None:
    alerts = played(*((second, hot(85, g)) for second in (0, 30) for g in ("g0", "g1")))

    assert len({alert.alert_id for alert in alerts}) == 2
    assert [alert.subject() for alert in alerts] == [
        "alert.raised.warning.node.n1.gpu_temperature-g0",
        "alert.raised.warning.node.n1.gpu_temperature-g1",
    ]
    assert [alert.part for alert in alerts] == ["g0", "g1"]


def test_each_file_system_has_its_own_alert() -> None:
    (alert,) = played((0, host(disks={"/": 0.5, "/var/lib": 0.95, "/mnt": None})))

    assert (alert.severity, alert.part) == ("critical", "/var/lib")
    assert alert.rule.startswith("disk_full--var-lib-")


def test_a_file_system_that_is_not_listed_any_more_has_no_alert_even_when_it_was_the_last() -> None:
    alerts = played((0, host(disks={"/mnt": 0.95})), (5, host()), (10, host(disks={})))

    assert transitions(alerts) == [("raised", "critical"), ("cleared", "critical")]
    assert alerts[-1].cleared_because == "gone"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.899, []),
        (0.90, [("raised", "warning")]),
        (0.949, [("raised", "warning")]),
        (0.95, [("raised", "critical")]),
    ],
)
def test_memory_thresholds(ratio: float, expected: list[tuple[str, str]]) -> None:
    assert transitions(played((0, host(memory=ratio)), (59, host(memory=ratio)))) == []
    steps = [(second, host(memory=ratio)) for second in (0, 30, 60)]
    assert transitions(played(*steps)) == expected


def test_a_rule_may_look_downwards() -> None:
    rule = AlertRule(
        name="disk_free",
        metric="host.memory.available_bytes",
        comparison="<=",
        warning=1e9,
        clear_margin=1e9,
    )
    handler = alerts_handler(rule)
    full, half, free = host(memory=0.99), host(memory=0.98), host(memory=0.5)

    assert transitions(played((0, full), (5, half), (10, free), handler=handler)) == [
        ("raised", "warning"),  # 0.7e9 free
        ("cleared", "warning"),  # 1.4e9 free: not yet; 34e9: cleared
    ]


@pytest.mark.parametrize(
    ("cpu", "raised"),
    [
        pytest.param(0.5, [], id="fine by all of them"),
        pytest.param(0.7, ["high"], id="by one not"),
        pytest.param(0.9, ["high", "higher"], id="by two not"),
        pytest.param(0.3, ["low"], id="by one that looks downwards not"),
        pytest.param(0.1, ["low", "lower"], id="by both of these not"),
        pytest.param(None, [], id="not measured"),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_each_of_many_rules_on_one_field_is_judged(
    cpu: float | None, raised: list[str], is_reversed: bool
) -> None:
    metric = "host.cpu.utilization_ratio"
    rules = [
        AlertRule(name="high", metric=metric, warning=0.6),
        AlertRule(name="higher", metric=metric, warning=0.8),
        AlertRule(name="low", metric=metric, comparison="<=", warning=0.4),
        AlertRule(name="lower", metric=metric, comparison="<=", warning=0.2),
    ]
    handler = alerts_handler(*(rules[::-1] if is_reversed else rules))

    assert sorted(one.rule for one in played((0, host(cpu=cpu)), handler=handler)) == raised


def test_an_open_alert_outlives_the_process() -> None:
    before = alerts_handler()
    raised = played((0, hot(85)), (30, hot(85)), handler=before)
    after = alerts_handler()
    snapshot = before.snapshot()
    assert snapshot is not None
    after.restore(snapshot)

    cleared = played((4000, hot(85)), (4030, hot(85)), (4035, hot(50)), handler=after)

    assert transitions(cleared) == [("cleared", "warning")]
    assert cleared[0].alert_id == raised[0].alert_id


def test_a_restored_alert_clears_although_its_rule_lost_the_severity() -> None:
    before = alerts_handler()
    played((0, hot(90)), (30, hot(90)), handler=before)
    without_critical = msgspec.structs.replace(DEFAULT_RULES[0], critical=None)
    after = alerts_handler(without_critical)
    after.restore(before.snapshot() or b"")

    assert transitions(played((40, hot(50)), handler=after)) == [("cleared", "critical")]


def test_simulated_and_pool_are_carried_on() -> None:
    message = host(disks={"/": 0.99}, simulated=True, pool="chat")

    (alert,) = played((0, message))

    assert (alert.simulated, alert.pool) == (True, "chat")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({"metric": "host.memory.free"}, "no 'free' here", id="unknown field"),
        pytest.param(
            {"metric": "host.uptime_seconds", "relative_to": "gpu.power_limit_watts"},
            "is not a number beside",
            id="relative to another message",
        ),
    ],
)
def test_a_wrong_rule_is_refused_at_start(fields: dict[str, str], text: str) -> None:
    rule = AlertRule(name="r", warning=1.0, **fields)  # type: ignore[arg-type]  # strings only

    with pytest.raises(ValueError, match=text):
        alerts_handler(rule)


def test_a_rule_without_thresholds_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="give info, warning or critical"):
        msgspec.convert({"name": "r", "metric": "host.uptime_seconds"}, AlertRule)


def test_an_alert_open_for_more_than_a_week_is_not_raised_again_after_a_restart() -> None:
    before = alerts_handler()
    full = host(disks={"/": 0.93})
    raised = played(*((second, full) for second in range(0, 8 * 86400, 50)), handler=before)
    after = alerts_handler()
    after.restore(before.snapshot() or b"")

    again = played((8 * 86400 + 5, full), handler=after)

    assert len(raised) == 1
    assert again == []


def test_one_slow_answer_of_a_gpu_raises_nothing() -> None:
    hung = gpu(is_reachable=False)

    assert played((0, gpu()), (5, hung), (10, gpu()), (15, hung)) == []


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("gpu.utilization_ratio", 0.934, "93.4 %"),
        ("gpu.temperature_celsius", 85.0, "85 °C"),
        ("host.network[interface].sent_bytes_per_second", 1.171875e9, "1,171,875,000 bytes/s"),
        ("host.memory.used_bytes", 1.5e11, "150,000,000,000 bytes"),
        ("engine.requests_waiting", 12.5, "12.5"),
        ("gpu.throttle_reasons[hw_slowdown]", 1.0, "1"),
    ],
)
def test_values_are_told_with_their_unit(metric: str, value: float, shown: str) -> None:
    assert value_text(metric, value) == shown


def test_who_takes_over_ends_alerts_in_the_same_order() -> None:
    """Which was heard last is another order than which was bad first."""
    first = alerts_handler()
    played(
        (0, host(disks={"/b": 0.97, "/a": 0.97, "/c": 0.97})),
        (5, host(disks={"/c": 0.97, "/b": 0.97, "/a": 0.97})),
        handler=first,
    )
    snapshot, second = first.snapshot(), alerts_handler()
    assert snapshot is not None
    second.restore(snapshot)

    ended = [played((10, host(disks={})), handler=one) for one in (first, second)]

    assert [alert.part for alert in ended[0]] == ["/a", "/b", "/c"]
    assert ended[0] == ended[1]
