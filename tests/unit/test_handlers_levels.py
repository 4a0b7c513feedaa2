import pytest

from handlers.settings import Band, Thresholds, UtilizationSettings
from handlers.utilization.levels import (
    balance,
    efficiency,
    health_of,
    level_of,
    power_efficiency,
    severity_of,
)
from schemas.analysis import Severity


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


_SETTINGS = UtilizationSettings()


@pytest.mark.parametrize(
    ("band", "ratio", "expected"),
    [
        *[
            pytest.param(_SETTINGS.gpu_efficient, ratio, expected, id=f"GPU at {ratio}")
            for ratio, expected in (
                (0, 0), (0.35, 0.5), (0.7, 1), (0.8, 1), (0.9, 1), (0.95, 0.9), (1.0, 0.8),
            )
        ],
        *[
            pytest.param(band, ratio, expected, id=f"{name} at {ratio}")
            for name, band in (
                ("CPU", _SETTINGS.cpu_efficient), ("memory", _SETTINGS.memory_efficient),
            )
            for ratio, expected in (
                (0, 0), (0.3, 0.5), (0.6, 1), (0.65, 1), (0.8, 1), (0.9, 0.8), (1.0, 0.6),
            )
        ],
        pytest.param(Band(least_ratio=0.1, most_ratio=0.2), 0.9, 0, id="never below 0"),
    ],
)  # fmt: skip
def test_efficiency_is_best_in_the_band_of_the_resource(
    band: Band, ratio: float, expected: float
) -> None:
    assert efficiency(ratio, band) == pytest.approx(expected)


def test_a_band_from_high_to_low_is_refused() -> None:
    with pytest.raises(ValueError, match="least_ratio must not be above most_ratio"):
        Band(least_ratio=0.9, most_ratio=0.7)


@pytest.mark.parametrize(
    ("bottlenecks", "parts_degrade_only", "health"),
    [
        pytest.param([], False, "healthy", id="none"),
        pytest.param([(None, "warning")], False, "degraded", id="a warning"),
        pytest.param([("g0", "critical")], False, "critical", id="a node's GPU"),
        pytest.param([("n1-g0", "critical")], True, "degraded", id="a fleet's GPU"),
        pytest.param([("n1-g0", "critical"), (None, "warning")], True, "degraded", id="and all"),
        pytest.param(
            [("n1", "warning"), (None, "critical")], True, "critical", id="the whole fleet"
        ),
    ],
)
def test_health_is_the_worst_bottleneck(
    bottlenecks: list[tuple[str | None, Severity]], parts_degrade_only: bool, health: str
) -> None:
    assert health_of(bottlenecks, parts_degrade_only=parts_degrade_only) == health


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        pytest.param([0.9, 0.9], 1.0, id="evenly"),
        pytest.param([0.6, 0.4], 0.5 / 0.6, id="60 and 40 are not far apart"),
        pytest.param([1.0] + 7 * [0.0], 0.125, id="one does all"),
        pytest.param([0.5], None, id="one GPU alone"),
        pytest.param([0.049, 0.0], None, id="nothing to spread"),
        pytest.param([], None, id="nothing measured"),
    ],
)
def test_balance_is_mean_by_maximum(ratios: list[float], expected: float | None) -> None:
    assert balance(ratios) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("utilization", "power", "expected"),
    [
        pytest.param(0.8, 1.0, 0.8, id="80 % at full power, of one GPU as of eight"),
        pytest.param(0.9, 300 / 700, 1.0, id="more work than power"),
        pytest.param(0.0, 0.1, 0.0, id="idle"),
        pytest.param(None, 0.5, None, id="utilization unknown"),
        pytest.param(0.5, None, None, id="power unknown"),
        pytest.param(0.5, 0.0, None, id="no power at all is no measurement"),
    ],
)
def test_power_efficiency_is_per_gpu(
    utilization: float | None, power: float | None, expected: float | None
) -> None:
    assert power_efficiency(utilization, power) == expected


def test_balance_does_not_depend_on_the_order() -> None:
    assert balance([0.1, 0.2, 0.3]) == balance([0.3, 0.2, 0.1])
