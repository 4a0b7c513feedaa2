"""How one device is asked: each reading guarded on its own, in the words its driver knows."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from agent.collectors.gpu import UNEXPECTED
from agent.collectors.nvml.binding import GPU_GONE, NOT_OFFERED, nvml

_UNKNOWN = 2**32 - 1  # nvml.h: NVML_VALUE_NOT_AVAILABLE as an unsigned number
_MOST_INT = 2**63 - 1  # what the wire can carry
_MOST_FLOAT = 1e15


class Reading(NamedTuple):
    """One question to NVML.

    `calls` are ways to ask it, newest first; `convert` turns the answer into the values of
    `fields`, in base units. A `constant` answer is asked for only once.
    """

    fields: tuple[str, ...]
    calls: tuple[Callable[[Any], Any], ...]
    convert: Callable[[Any], tuple[Any, ...]]
    constant: bool = False


class Answers:
    """What one device answers, and what was learned about asking it.

    A call that the device or driver does not offer is replaced by its older form, and where there
    is none left the fields stay null without an error; a call we may not make stays null with its
    error; neither is made again here (`NvmlGpu` begins anew after a while where something is
    forbidden). Any other failure is an error of this one sample.
    """

    def __init__(self, handle: object) -> None:
        self.handle = handle
        # By the first field of a reading: the call to make next, or why none may be made, or the
        # values where they never change.
        self._call_of: dict[str, int] = {}
        self._forbidden: dict[str, str] = {}
        self._constants: dict[str, dict[str, Any]] = {}

    def read(self, reading: Reading, errors: dict[str, str]) -> dict[str, Any]:
        """The reading's fields, or nothing.

        Raises:
            NVMLError: the GPU is gone.
        """
        key = reading.fields[0]
        if key in self._constants:
            return self._constants[key]
        if key in self._forbidden:
            errors.update(dict.fromkeys(reading.fields, self._forbidden[key]))
            return {}
        while (number := self._call_of.get(key, 0)) < len(reading.calls):
            try:
                said = reading.calls[number](self.handle)
                if said == _UNKNOWN:
                    errors.update(dict.fromkeys(reading.fields, "the driver does not know"))
                    return {}
                answer = reading.convert(said)
            except nvml.NVMLError as error:
                if error.value in GPU_GONE:
                    raise
                if error.value in NOT_OFFERED:
                    self._call_of[key] = number + 1
                    continue
                if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                    self._forbidden[key] = str(error)
                errors.update(dict.fromkeys(reading.fields, str(error)))
                return {}
            except UNEXPECTED as error:
                errors.update(dict.fromkeys(reading.fields, f"unexpected answer: {error!r}"))
                return {}
            values = dict(zip(reading.fields, answer, strict=True))
            values = credible(values, errors)
            if reading.constant:
                self._constants[key] = values
            return values
        return {}


def credible(values: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    """`values` without numbers that no GPU can mean, as a dying one says; those are errors."""
    found = {}
    for field, value in values.items():
        most = _MOST_INT if isinstance(value, int) else _MOST_FLOAT
        if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= most):
            errors[field] = f"the driver says {value}"
        else:
            found[field] = value
    return found
