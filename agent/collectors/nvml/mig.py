"""MIG: the slices of one GPU, each measured as a GPU of its own."""

from typing import Any, NamedTuple

from agent.collectors.nvml.answers import Answers
from agent.collectors.nvml.binding import GPU_GONE, nvml, or_none
from agent.collectors.nvml.gpm import Gpm
from agent.collectors.nvml.readings import MIG_READINGS
from schemas.gpu import MigInstance


class MigReading(NamedTuple):
    """What one instance says."""

    uuid: str
    name: str | None
    instance: MigInstance
    values: dict[str, Any]
    errors: dict[str, str]


class _Instance:
    """One instance and what was learned about it."""

    def __init__(self, gpu: object, handle: object, uuid: str, index: int) -> None:
        self.uuid = uuid
        self.name = or_none(nvml.nvmlDeviceGetName, handle)
        gpu_instance = or_none(nvml.nvmlDeviceGetGpuInstanceId, handle)
        self.place = MigInstance(
            index=index,
            gpu_instance=gpu_instance,
            compute_instance=or_none(nvml.nvmlDeviceGetComputeInstanceId, handle),
        )
        self.answers = Answers(handle)
        self.gpm = None if gpu_instance is None else Gpm(gpu, gpu_instance)

    def read(self) -> MigReading:
        errors: dict[str, str] = {}
        values: dict[str, Any] = {}
        for reading in MIG_READINGS:
            values |= self.answers.read(reading, errors)
        if self.gpm is not None:
            values |= self.gpm.read(errors)
        return MigReading(self.uuid, self.name, self.place, values, errors)

    def close(self) -> None:
        if self.gpm is not None:
            self.gpm.close()


class MigInstances:
    """The instances of one GPU, listed anew at each reading: they come and go at run time."""

    def __init__(self, gpu: object) -> None:
        self._gpu = gpu
        self._known: dict[tuple[int, str], _Instance] = {}  # by place and UUID

    def read(self, errors: dict[str, str]) -> list[MigReading]:
        """Every instance there is; why one cannot be listed is an error under `mig`.

        Raises:
            NVMLError: the GPU is gone.
        """
        before, self._known = self._known, {}
        try:
            for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(self._gpu)):
                self._find(index, before, errors)
        except nvml.NVMLError as error:
            if error.value in GPU_GONE:
                raise
            errors["mig"] = str(error)
        finally:
            for instance in before.values():
                instance.close()  # is no more, or cannot be reached
        return [instance.read() for instance in self._known.values()]

    def close(self) -> None:
        """Give back what the readings hold."""
        for instance in self._known.values():
            instance.close()
        self._known = {}

    def _find(
        self, index: int, before: dict[tuple[int, str], _Instance], errors: dict[str, str]
    ) -> None:
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._gpu, index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError as error:
            if error.value in GPU_GONE:
                raise
            if error.value != nvml.NVML_ERROR_NOT_FOUND:  # places may be empty
                errors["mig"] = str(error)
            return
        instance = before.pop((index, uuid), None) or _Instance(self._gpu, handle, uuid, index)
        instance.answers.handle = handle  # created again, it has the UUID but not the handle
        self._known[index, uuid] = instance
