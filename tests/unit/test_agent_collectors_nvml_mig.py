import msgspec
import pytest

from schemas.gpu import MigInstance
from tests.support.nvml import NvmlStub, OpenedGpus

NOT_FOUND, TIMEOUT, GPU_IS_LOST = 6, 10, 15


def test_each_instance_is_a_gpu_of_its_own_that_names_its_parent(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.add_mig(0, 2, gpu_instance=5)  # place 1 is empty
    gpus.sample()

    parent, first, second = gpus.sample()

    assert (parent.parent, parent.mig, parent.is_mig_enabled) == (None, None, True)
    assert first.parent == second.parent == parent.gpu
    assert first.gpu == "MIG-5f2a1c9e-0000-0000-0000-000000000000"
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 2g.20gb"
    assert second.mig == MigInstance(index=2, gpu_instance=5, compute_instance=0)
    assert (first.pool, first.driver_version, first.interval_seconds) == ("p1", "580.95.05", 5.0)
    assert msgspec.json.decode(msgspec.json.encode(first), type=type(first)) == first


def test_an_instance_tells_its_memory_processes_and_activity_and_no_more(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    gpus.sample()

    parent, instance = gpus.sample()

    assert instance.memory_used_bytes == 10_000_000_000
    assert [process.pid for process in instance.processes or ()] == [4242]
    assert (instance.utilization_ratio, instance.utilization_source) == (0.25, "gpm_sm_activity")
    assert instance.dram_activity_ratio == 0.5
    # Power is the whole GPU's: told once, it is counted once.
    assert (instance.power_watts, instance.energy_joules_total) == (None, None)
    assert (parent.power_watts, parent.utilization_ratio) == (651.234, None)
    assert (parent.errors, instance.errors) == ({}, {})


def test_an_instance_that_fails_costs_its_own_field(stub: NvmlStub, gpus: OpenedGpus) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.fail("0.mig0.memory", TIMEOUT)

    parent, instance = gpus.sample()

    assert instance.errors["memory_used_bytes"] == "Timeout"
    assert len(instance.processes or ()) == 1
    assert parent.errors == {}


def test_instances_come_and_go_and_keep_their_measurements_apart(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    gpus.sample()
    stub.add_mig(0, 1, gpu_instance=4)
    stub.set("0.gi4.gpm.2", "75")
    _, old, new = gpus.sample()
    stub.remove_mig(0, 0)

    _, left = gpus.sample()

    assert (old.sm_activity_ratio, new.sm_activity_ratio) == (0.25, None)
    assert (left.gpu, left.sm_activity_ratio) == (new.gpu, 0.75)


def test_what_mig_took_from_the_gpu_is_back_when_it_is_off(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    gpus.sample()
    stub.set("0.utilization", "93 41")
    stub.set("0.gpm_sample", "1")
    stub.set("0.mig_mode", "0 0")
    (first,) = gpus.sample()

    (second,) = gpus.sample()

    assert (first.is_mig_enabled, first.utilization_source) == (False, "nvml_utilization")
    assert second.utilization_source == "gpm_sm_activity"


def test_what_an_instance_holds_of_the_driver_is_given_back(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.add_mig(0, 1, gpu_instance=4)
    gpus.sample()
    before = stub.calls("gpm_alloc") - stub.calls("gpm_free")
    stub.remove_mig(0, 0)
    gpus.sample()
    left = stub.calls("gpm_alloc") - stub.calls("gpm_free")

    gpus.close()

    assert (before, left) == (4, 2)
    assert stub.calls("gpm_alloc") == stub.calls("gpm_free")


def test_instances_that_cannot_be_listed_are_an_error_of_their_gpu(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.fail("0.mig_max", TIMEOUT)

    (gpu,) = gpus.sample()

    assert gpu.errors == {"mig": "Timeout"}
    assert gpu.power_watts == 651.234


@pytest.mark.parametrize("key", ["handle", "uuid"])
def test_an_instance_that_cannot_be_told_costs_none_of_the_others(
    stub: NvmlStub, gpus: OpenedGpus, key: str
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.add_mig(0, 1, gpu_instance=4)
    gpus.sample()
    stub.fail(f"0.mig0.{key}", TIMEOUT)

    parent, other = gpus.sample()

    assert parent.errors == {"mig": "Timeout"}
    assert other.mig == MigInstance(index=1, gpu_instance=4, compute_instance=0)
    assert other.sm_activity_ratio == 0.25


def test_an_instance_that_is_created_again_is_asked_by_its_new_handle(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    gpus.sample()
    stub.set("0.mig0.handle", "2")

    _, instance = gpus.sample()

    assert (instance.errors, instance.memory_used_bytes) == ({}, 10_000_000_000)


def test_an_instance_that_is_created_again_elsewhere_is_asked_there(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    _, before = gpus.sample()
    stub.remove_mig(0, 0)
    stub.add_mig(0, 1, gpu_instance=3)
    stub.set("0.mig1.uuid", before.uuid)
    stub.set("0.mig1.memory", "20937965568 2 20937965566 0")

    _, after = gpus.sample()

    assert (after.uuid, after.memory_used_bytes) == (before.uuid, 2)
    assert after.mig == MigInstance(index=1, gpu_instance=3, compute_instance=0)


@pytest.mark.parametrize("key", ["mig_max", "mig0.handle", "mig0.uuid", "mig0.memory"])
def test_with_the_gpu_its_instances_are_lost(stub: NvmlStub, gpus: OpenedGpus, key: str) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.fail(f"0.{key}", GPU_IS_LOST)

    (gpu,) = gpus.sample()

    assert (gpu.is_reachable, gpu.errors) == (False, {"gpu": "GPU is lost"})


def test_instances_that_were_there_are_told_as_lost_with_their_gpu(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    _, before = gpus.sample()
    stub.fail("0.mig_max", GPU_IS_LOST)

    parent, instance = gpus.sample()

    assert (instance.gpu, instance.parent, instance.mig) == (before.gpu, parent.gpu, before.mig)
    assert (instance.is_reachable, instance.errors) == (False, {"gpu": "GPU is lost"})
    assert instance.memory_used_bytes is None


def test_an_instance_without_a_gpu_instance_has_no_activity(
    stub: NvmlStub, gpus: OpenedGpus
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)
    stub.fail("0.mig0.gpu_instance", NOT_FOUND)
    gpus.sample()

    _, instance = gpus.sample()

    assert instance.mig == MigInstance(index=0, compute_instance=0)
    assert (instance.sm_activity_ratio, instance.utilization_source) == (None, None)
