"""What GPU models can do: memory, bandwidth and tensor rate, overridden by settings."""

import functools
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_KNOWN = 1024
Positive = Annotated[float, Meta(gt=0, le=1e18)]


class GpuModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of GPU, as its maker's data sheet has it."""

    gpu: Annotated[str, Meta(description="regular expression, searched in the driver's name")]
    name: Annotated[str, Meta(description="as a driver writes it: prices are looked up by it")]
    memory_bytes: Annotated[Positive, Meta(description="drivers tell about as much or more")]
    memory_bytes_per_second: Annotated[Positive, Meta(description="bandwidth of its memory")]
    tensor_flops: Annotated[
        Positive | None, Meta(description="BF16, else FP16, dense; null: never advised")
    ] = None
    compute_capability: Annotated[
        float, Meta(ge=0, le=100, description="of CUDA; a lower one lacks number formats")
    ] = 0.0
    source: Annotated[str, Meta(description="whose figures")] = "settings"
    as_of: Annotated[
        Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None,
        Meta(description="the day they were looked up; null: not known"),
    ] = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.gpu)
        except re.error as error:
            raise ValueError(f"gpu model {self.gpu!r}: no regular expression: {error}") from None


class GpuModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models that GPUs may be, and that may be advised."""

    rules: Annotated[
        tuple[GpuModel, ...],
        Meta(description="yours; the first that matches counts, then the built-in ones"),
    ] = ()
    built_in: Annotated[bool, Meta(description="know the built-in models, too")] = True


def _listed(
    gpu: str, name: str, gigabytes: float, gigabytes_per_second: float, teraflops: float | None,
    capability: float,
) -> GpuModel:  # fmt: skip
    return GpuModel(
        gpu=gpu,
        name=name,
        memory_bytes=gigabytes * 1e9,
        memory_bytes_per_second=gigabytes_per_second * 1e9,
        tensor_flops=None if teraflops is None else teraflops * 1e12,
        compute_capability=capability,
        source="NVIDIA data sheet",
        as_of="2026-11-21",
    )


# GB, GB/s, dense TFLOPS in BF16 (T4: FP16): half of what data sheets give with sparsity. The
# expressions are those of the prices, so that a GPU without a price is none that can be advised.
BUILT_IN = (
    _listed(r"\bB300\b", "NVIDIA B300", 288, 8000, 2250, 10.3),
    _listed(r"\bB200\b", "NVIDIA B200", 180, 8000, 2250, 10.0),
    _listed(r"\bH200\b", "NVIDIA H200", 141, 4800, 989, 9.0),
    _listed(r"\bH100 NVL\b", "NVIDIA H100 NVL", 94, 3900, 835, 9.0),
    _listed(r"\bH100 PCIe\b", "NVIDIA H100 PCIe", 80, 2000, 756, 9.0),
    _listed(r"\bH100\b", "NVIDIA H100 80GB HBM3", 80, 3350, 989, 9.0),
    _listed(r"\bA100\b.*\b80GB\b", "NVIDIA A100-SXM4-80GB", 80, 2039, 312, 8.0),
    _listed(r"\bA100\b.*\b40GB\b", "NVIDIA A100-SXM4-40GB", 40, 1555, 312, 8.0),
    _listed(r"\bL40S\b", "NVIDIA L40S", 48, 864, 362, 8.9),
    _listed(
        r"\bRTX PRO 6000\b", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 96, 1597, None, 12.0
    ),
    _listed(r"\bL4\b", "NVIDIA L4", 24, 300, 121, 8.9),
    _listed(r"\bA10G\b", "NVIDIA A10G", 24, 600, 70, 8.6),
    _listed(r"\bT4\b", "Tesla T4", 16, 320, 65, 7.5),
)


class GpuModels:
    """Finds the model of a GPU by its driver's name; O(models) once for each name."""

    def __init__(self, settings: GpuModelSettings) -> None:
        built_in = BUILT_IN if settings.built_in else ()
        self._models: tuple[GpuModel, ...] = (*settings.rules, *built_in)
        self._patterns = [(re.compile(one.gpu, re.IGNORECASE), one) for one in self._models]
        self._known = functools.lru_cache(maxsize=MAX_KNOWN)(self._find)

    def __iter__(self) -> Iterator[GpuModel]:
        """Every model, those of the settings first; none that an earlier one replaces."""
        return (one for one in self._models if self.find(one.name) is one)

    def find(self, name: str | None) -> GpuModel | None:
        """The first that matches; None: what this GPU can do is not known."""
        return None if name is None else self._known(name)

    def _find(self, name: str) -> GpuModel | None:
        return next((one for pattern, one in self._patterns if pattern.search(name)), None)
