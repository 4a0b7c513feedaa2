import pytest

from handlers.levels import efficiency, gpu_state, health_of, level_of, severity_of
from handlers.settings import Thresholds, UtilizationSettings
from schemas.analysis import Bottleneck, Severity


@pytest.mark.parametrize(
    ("ratio", "level"),
    [
        (0.0, "idle"),
        (0.199, "idle"),
        (0.20, "low"),
        (0.499, "low"),
        (0.50, "moderate"),
        (0.699, "moderate"),
        (0.70, "high"),
        (0.899, "high"),
        (0.90, "critical"),
        (1.0, "critical"),
    ],
)
def test_levels_start_exactly_at_their_threshold(ratio: float, level: str) -> None:
    assert level_of(ratio, None, 0.05) == level


@pytest.mark.parametrize(
    ("ratio", "previous", "level"),
    [
        pytest.param(0.46, "moderate", "moderate", id="within the margin it stays"),
        pytest.param(0.44, "moderate", "low", id="below the margin it falls"),
        pytest.param(0.51, "low", "moderate", id="it rises at once"),
        pytest.param(0.10, "critical", "idle", id="a deep fall skips levels"),
        pytest.param(0.66, "critical", "high", id="a fall stops inside the next margin"),
    ],
)
def test_a_level_falls_only_past_its_margin(ratio: float, previous: str, level: str) -> None:
    assert level_of(ratio, previous, 0.05) == level  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    ("ratio", "previous", "severity"),
    [
        pytest.param(0.79, None, None, id="below"),
        pytest.param(0.80, None, "warning", id="at the warning threshold"),
        pytest.param(0.949, None, "warning", id="just below critical"),
        pytest.param(0.95, None, "critical", id="at the critical threshold"),
        pytest.param(0.76, "warning", "warning", id="kept within the margin"),
        pytest.param(0.74, "warning", None, id="ended below the margin"),
        pytest.param(0.91, "critical", "critical", id="critical kept within the margin"),
        pytest.param(0.89, "critical", "warning", id="critical falls to warning"),
        pytest.param(0.10, "critical", None, id="critical falls to none"),
    ],
)
def test_severity_has_two_thresholds_and_a_margin(
    ratio: float, previous: Severity | None, severity: Severity | None
) -> None:
    thresholds = Thresholds(warning_ratio=0.80, critical_ratio=0.95)

    assert severity_of(ratio, thresholds, previous, 0.05) == severity


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0, 0), (0.35, 0.5), (0.7, 1), (0.8, 1), (0.9, 1), (0.95, 0.9), (1.0, 0.8)],
)
def test_efficiency_has_its_best_from_70_to_90_percent(ratio: float, expected: float) -> None:
    assert efficiency(ratio) == pytest.approx(expected)


def bottleneck(severity: Severity, resource_id: str | None = None) -> Bottleneck:
    return Bottleneck(
        resource="gpu",
        resource_id=resource_id,
        severity=severity,
        value_ratio=0.99,
        threshold_ratio=0.9,
    )


@pytest.mark.parametrize(
    ("bottlenecks", "parts_degrade_only", "health"),
    [
        pytest.param([], False, "healthy", id="none"),
        pytest.param([bottleneck("warning")], False, "degraded", id="a warning"),
        pytest.param([bottleneck("critical", "g0")], False, "critical", id="a node's GPU"),
        pytest.param([bottleneck("critical", "n1-g0")], True, "degraded", id="a fleet's GPU"),
        pytest.param([bottleneck("critical")], True, "critical", id="the whole fleet"),
    ],
)
def test_health_is_the_worst_bottleneck(
    bottlenecks: list[Bottleneck], parts_degrade_only: bool, health: str
) -> None:
    assert health_of(bottlenecks, parts_degrade_only=parts_degrade_only) == health


@pytest.mark.parametrize(
    ("utilization", "memory", "power", "state"),
    [
        pytest.param(0.05, 0.0, None, "active", id="utilization at the threshold"),
        pytest.param(0.04, 0.6, 0.1, "idle_held", id="idle with memory held"),
        pytest.param(0.04, 0.05, 0.1, "idle_held", id="memory at the threshold"),
        pytest.param(0.0, 0.04, 0.1, "idle", id="truly idle"),
        pytest.param(0.0, 0.04, None, "idle", id="power is not needed"),
        pytest.param(0.0, 0.6, 0.5, "active", id="power tells of work"),
        pytest.param(None, 0.6, 0.6, "active", id="power tells it alone"),
        pytest.param(None, 0.0, 0.1, None, id="unknown utilization is not idle"),
        pytest.param(0.0, None, 0.1, None, id="unknown memory is not free"),
        pytest.param(None, None, None, None, id="nothing known"),
    ],
)
def test_a_gpus_state_needs_evidence(
    utilization: float | None, memory: float | None, power: float | None, state: str | None
) -> None:
    found, evidence = gpu_state(UtilizationSettings(), utilization, memory, power)

    assert found == state
    assert len(evidence) == 3
    assert sum("not measured" in line for line in evidence) == [utilization, memory, power].count(
        None
    )
