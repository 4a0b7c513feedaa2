"""Activity by GPM, traffic of the links, and what an older driver or GPU lacks of both."""

from pathlib import Path

import pytest

from tests.support.nvml import NvmlStub, OpenedGpus, build_stub, nvml_stub

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 10, 13, 15
ACTIVITY = (
    "sm_activity_ratio",
    "sm_occupancy_ratio",
    "tensor_activity_ratio",
    "dram_activity_ratio",
)


def test_busy_is_the_drivers_word_until_gpm_has_two_samples(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    (first,) = gpus.sample()
    (second,) = gpus.sample()

    assert (first.utilization_ratio, first.utilization_source) == (0.93, "nvml_utilization")
    assert (second.utilization_ratio, second.utilization_source) == (0.615, "gpm_sm_activity")
    assert (first.errors, second.errors) == ({}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("gpm", "0", id="this GPU has none"),
        pytest.param("gpm", f"!{NOT_SUPPORTED}", id="not supported"),
        pytest.param("gpm", f"!{FUNCTION_NOT_FOUND}", id="the driver is older"),
        pytest.param("gpm_sample", f"!{NOT_SUPPORTED}", id="no sample, as with MIG"),
    ],
)
def test_a_gpu_without_gpm_is_not_asked_again(
    stub: NvmlStub, gpus: OpenedGpus, key: str, value: str
) -> None:
    stub.set(f"0.{key}", value)

    gpus.sample()
    (gpu,) = gpus.sample()

    assert (gpu.utilization_source, gpu.sm_activity_ratio, gpu.errors) == (
        "nvml_utilization",
        None,
        {},
    )
    assert stub.calls(f"0.{key}") == 1


def test_gpm_that_is_forbidden_is_named_and_the_driver_asked_instead(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.gpm_sample", NO_PERMISSION)

    gpus.sample()
    (gpu,) = gpus.sample()

    assert gpu.errors == dict.fromkeys(ACTIVITY, "Insufficient Permissions")
    assert gpu.utilization_source == "nvml_utilization"
    assert stub.calls("0.gpm_sample") == 1


def test_after_a_gpm_sample_that_failed_two_new_ones_are_compared(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    gpus.sample()
    stub.fail("0.gpm_sample", TIMEOUT)
    (failed,) = gpus.sample()
    stub.set("0.gpm_sample", "1")

    (first,), (second,) = gpus.sample(), gpus.sample()

    assert failed.errors == dict.fromkeys(ACTIVITY, "Timeout")
    assert (first.sm_activity_ratio, first.errors) == (None, {})
    assert second.sm_activity_ratio == 0.615


def test_an_activity_that_is_no_number_is_an_error_of_its_own(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.set("0.gpm.2", "nan")
    gpus.sample()

    (gpu,) = gpus.sample()

    assert gpu.errors == {"sm_activity_ratio": "GPM says nan"}
    assert (gpu.dram_activity_ratio, gpu.utilization_source) == (0.75, "nvml_utilization")


def test_a_counter_that_wrapped_has_no_rate_this_once(stub: NvmlStub, gpus: OpenedGpus) -> None:
    gpus.sample()
    stub.set("0.field.197", "q 500")
    (wrapped,) = gpus.sample()
    stub.set("0.field.197", "q 5500")

    (after,) = gpus.sample()

    assert wrapped.pcie is not None
    assert after.pcie is not None
    assert (wrapped.pcie.sent_bytes_total, wrapped.pcie.sent_bytes_per_second) == (500, None)
    assert after.pcie.sent_bytes_per_second == 1000.0


def test_without_pcie_counters_gpm_tells_the_rate(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.remove("0.field.197", "0.field.198")
    gpus.sample()

    (gpu,) = gpus.sample()

    assert gpu.pcie is not None
    assert (gpu.pcie.sent_bytes_per_second, gpu.pcie.received_bytes_per_second) == (
        3.0 * 1024**2,
        4.0 * 1024**2,
    )


def test_without_either_the_driver_watches_the_link_for_a_moment(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.remove("0.field.197", "0.field.198", "0.gpm")
    stub.set("0.pcie_throughput0", "12")
    stub.set("0.pcie_throughput1", "34")

    (gpu,) = gpus.sample()

    assert gpu.pcie is not None
    assert (gpu.pcie.sent_bytes_per_second, gpu.pcie.received_bytes_per_second) == (
        12_000.0,
        34_000.0,
    )


@pytest.mark.parametrize(
    "value", [pytest.param("q 5", id="first read"), pytest.param(f"!{TIMEOUT}", id="failed")]
)
def test_a_counter_without_a_rate_does_not_send_the_driver_watching(
    stub: NvmlStub, gpus: OpenedGpus, value: str
) -> None:
    stub.remove("0.gpm")
    stub.set("0.field.197", value)

    gpus.sample()

    assert stub.calls("0.pcie_throughput0") == 0


def test_newer_nvlinks_count_bytes_elsewhere(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.remove("0.field.138.all", "0.field.139.all")
    stub.set("0.field.202.all", "q 7000")
    stub.set("0.field.204.all", "q 9000")

    (gpu,) = gpus.sample()

    assert gpu.nvlink is not None
    assert (gpu.nvlink.sent_bytes_total, gpu.nvlink.received_bytes_total) == (7000, 9000)


def test_where_nvlinks_count_twice_the_older_counter_is_told(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.set("0.field.202.all", "q 7000")

    (gpu,) = gpus.sample()

    assert gpu.nvlink is not None
    assert gpu.nvlink.sent_bytes_total == 2000 * 1024


def test_a_counter_that_fails_is_no_error_where_the_other_one_answers(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.field.138.all", TIMEOUT)
    stub.set("0.field.202.all", "q 7000")

    (gpu,) = gpus.sample()

    assert gpu.nvlink is not None
    assert (gpu.nvlink.sent_bytes_total, gpu.errors) == (7000, {})


def test_a_gpu_without_nvlink_has_no_such_part(stub: NvmlStub, gpus: OpenedGpus) -> None:
    fields = ("91", "138.all", "139.all", "38", "52", "59")
    stub.remove("0.gpm", *(f"0.field.{field}" for field in fields))

    (gpu,) = gpus.sample()

    assert (gpu.nvlink, gpu.errors) == (None, {})


def test_an_nvlink_that_is_down_is_missed(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.nvlink1", "0")

    (gpu,) = gpus.sample()

    assert gpu.nvlink is not None
    assert (gpu.nvlink.links, gpu.nvlink.links_active) == (2, 1)


@pytest.mark.parametrize(
    ("value", "action"),
    [
        pytest.param("u 1", "gpu_reset", id="reset"),
        pytest.param("u 4", "drain_and_reset", id="drain"),
        pytest.param("u 7", "system_reboot", id="reboot"),
        pytest.param("u 77", "action_77", id="of a newer driver"),
    ],
)
def test_what_the_driver_wants_has_a_name(
    stub: NvmlStub, gpus: OpenedGpus, value: str, action: str
) -> None:
    stub.set("0.field.230", value)

    (gpu,) = gpus.sample()

    assert gpu.recovery_action == action


@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param("d 71.5", 71.5, id="a double"),
        pytest.param("q 71", 71.0, id="64 bits"),
    ],
)
def test_a_field_comes_in_the_type_the_driver_chose(
    stub: NvmlStub, gpus: OpenedGpus, value: str, number: float
) -> None:
    stub.set("0.field.82", value)

    (gpu,) = gpus.sample()

    assert gpu.temperature_memory_celsius == number


def test_fields_the_driver_does_not_know_are_left_out_of_the_next_question(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.fail("0.field.230", 2)  # invalid argument, an older driver's word for it
    gpus.sample()

    (gpu,) = gpus.sample()

    assert (gpu.recovery_action, gpu.temperature_memory_celsius, gpu.errors) == (None, 71.0, {})
    assert stub.calls("0.field.230") == 1


def test_a_forbidden_field_is_named_and_left_out(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.fail("0.field.197", NO_PERMISSION)
    gpus.sample()

    (gpu,) = gpus.sample()

    assert gpu.errors == {"pcie.sent_bytes_total": "Insufficient Permissions"}
    assert stub.calls("0.field.197") == 1


@pytest.mark.parametrize(
    ("code", "text", "calls"),
    [
        pytest.param(FUNCTION_NOT_FOUND, None, 1, id="not offered"),
        pytest.param(NO_PERMISSION, "Insufficient Permissions", 1, id="forbidden"),
        pytest.param(TIMEOUT, "Timeout", 2, id="failed"),
    ],
)
def test_when_the_whole_question_fails_all_its_fields_do(
    stub: NvmlStub, gpus: OpenedGpus, code: int, text: str | None, calls: int
) -> None:
    stub.fail("0.fields", code)
    gpus.sample()

    (gpu,) = gpus.sample()

    assert gpu.errors.get("temperature_memory_celsius") == text
    assert gpu.power_watts == 651.234
    assert stub.calls("0.fields") == calls


@pytest.mark.parametrize("key", ["field.82", "fields", "gpm_sample", "mig_mode", "nvlink0"])
def test_a_gpu_lost_at_any_question_is_lost(stub: NvmlStub, gpus: OpenedGpus, key: str) -> None:
    stub.fail(f"0.{key}", GPU_IS_LOST)

    (gpu,) = gpus.sample()

    assert (gpu.is_reachable, gpu.errors, gpu.power_watts) == (
        False,
        {"gpu": "GPU is lost"},
        None,
    )


def test_a_number_that_no_gpu_can_mean_is_an_error(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.set("0.ecc_volatile_corrected", str(2**64 - 1))
    stub.set("0.field.197", f"q {2**64 - 1}")

    (gpu,) = gpus.sample()

    assert gpu.errors == {
        "ecc.volatile_corrected_total": "the driver says 18446744073709551615",
        "pcie.sent_bytes_total": "the driver says 18446744073709551615",
    }
    assert gpu.power_watts == 651.234


def test_a_field_of_a_type_that_nobody_knows_is_an_error_of_its_own(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.set("0.field.82", "? 71")

    (gpu,) = gpus.sample()

    assert list(gpu.errors) == ["temperature_memory_celsius"]
    assert gpu.errors["temperature_memory_celsius"].startswith("unexpected answer: IndexError")
    assert gpu.recovery_action == "none"


def test_a_driver_of_2020_measures_what_it_can(tmp_path: Path, gpus: OpenedGpus) -> None:
    library = build_stub(tmp_path, is_old=True)

    with nvml_stub(library, tmp_path / "values") as stub:
        stub.set("0.reasons_old", "4")
        stub.set("0.processes_old", "9 100")
        gpus.sample()
        (gpu,) = gpus.sample()
        gpus.close()

    assert gpu.errors == {}
    assert (gpu.temperature_celsius, gpu.memory_used_bytes, gpu.memory_reserved_bytes) == (
        63.0,
        70_621_809_984,
        None,
    )
    assert (gpu.throttle_reasons, gpu.is_mig_enabled) == (["sw_power_cap"], None)
    assert (gpu.utilization_source, gpu.sm_activity_ratio) == ("nvml_utilization", None)
