from typing import Any

import pytest

from handlers.settings import UtilizationSettings
from handlers.utilization.gpu_state import GpuEvidence, activity, gpu_state, in_words
from tests.support.samples import gpu


@pytest.mark.parametrize(
    ("busy", "memory", "power", "running", "state", "source"),
    [
        pytest.param(0.05, 0.0, None, None, "active", "sm_activity", id="at the threshold"),
        pytest.param(0.04, 0.6, 0.1, None, "idle_held", "sm_activity", id="memory held"),
        pytest.param(0.04, 0.05, 0.1, None, "idle_held", "sm_activity", id="just held"),
        pytest.param(0.0, 0.04, 0.1, None, "idle", "sm_activity", id="truly idle"),
        pytest.param(0.0, 0.04, None, None, "idle", "sm_activity", id="power is not needed"),
        pytest.param(0.0, 0.6, 0.5, None, "active", "power", id="power tells of work"),
        pytest.param(None, 0.6, 0.6, None, "active", "power", id="power tells it alone"),
        pytest.param(None, 0.0, 0.1, None, None, None, id="unknown activity is not idle"),
        pytest.param(0.0, None, 0.1, None, None, None, id="unknown memory is not free"),
        pytest.param(None, None, None, None, None, None, id="nothing known"),
        pytest.param(0.02, 0.6, 0.1, 0.5, "active", "engine", id="a light load of an engine"),
        pytest.param(0.0, 0.6, 0.1, 9.0, "idle_held", "sm_activity", id="engine is elsewhere"),
        pytest.param(0.02, 0.0, 0.1, 9.0, "idle", "sm_activity", id="no memory, no engine"),
        pytest.param(None, 0.6, 0.1, 0.0, "idle_held", "engine", id="engines at rest tell it"),
        pytest.param(None, 0.6, 0.1, 2.0, "active", "engine", id="engines at work tell it"),
        pytest.param(None, 0.0, 0.1, 0.0, None, None, id="engines say nothing of empty GPUs"),
        pytest.param(0.02, 0.6, 0.1, 0.0, "idle_held", "sm_activity", id="engine at rest"),
    ],
)
def test_a_gpus_state_needs_evidence(
    busy: float | None,
    memory: float | None,
    power: float | None,
    running: float | None,
    state: str | None,
    source: str | None,
) -> None:
    evidence = GpuEvidence(
        activity_ratio=busy,
        activity_source="sm_activity",
        memory_ratio=memory,
        power_ratio=power,
        requests_running=running,
    )

    assert gpu_state(UtilizationSettings(), evidence) == (state, source)
    words = in_words(UtilizationSettings(), evidence)
    unmeasured = [busy, memory, power].count(None)
    assert sum("not measured" in line for line in words) == unmeasured
    assert len(words) == 3 + (running is not None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {
                "utilization_ratio": 1.0,
                "sm_activity_ratio": 0.01,
                "tensor_activity_ratio": 0.0,
                "dram_activity_ratio": 0.02,
            },
            (0.02, "dram_activity"),
            id="a kernel that waits is no work",
        ),
        pytest.param(
            {"sm_activity_ratio": 0.3, "tensor_activity_ratio": 0.5},
            (0.5, "tensor_activity"),
            id="the busiest counts",
        ),
        pytest.param(
            {"utilization_ratio": 0.7, "utilization_source": "nvml_utilization"},
            (0.7, "nvml_utilization"),
            id="the driver's without GPM",
        ),
        pytest.param({}, (None, "utilization"), id="nothing measured"),
    ],
)
def test_activity_is_the_busiest_unit_of_a_gpu(
    fields: dict[str, Any], expected: tuple[float | None, str]
) -> None:
    assert activity(gpu(**fields)) == expected
