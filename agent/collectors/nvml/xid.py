"""XID errors: what the driver reports of a GPU, in a thread that waits for nothing else."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from agent.collectors.nvml.binding import NOT_OFFERED, nvml, or_none
from schemas.gpu import XidEvent, XidMetrics
from schemas.units import SECOND_NS, instant

WAIT_MILLISECONDS = 2000
RETRY_SECONDS = 60.0
_RECENT_NS = 600 * SECOND_NS
_RECENT_MAX = 20
_WHOLE_GPU = 0xFFFFFFFF

Severity = Literal["info", "warning", "critical"]
# NVIDIA's XID catalog, in short; the severities are ours.
_CATALOG: dict[int, tuple[Severity, str]] = {
    13: ("info", "graphics engine exception, mostly an application's fault"),
    31: ("info", "memory page fault, mostly an application's fault"),
    43: ("info", "an application's channel was stopped"),
    45: ("info", "an application's channel was cleaned up"),
    48: ("critical", "uncorrectable memory error"),
    63: ("warning", "a row remap or page retirement was recorded"),
    64: ("critical", "a row remap or page retirement failed"),
    74: ("critical", "NVLink error"),
    79: ("critical", "the GPU fell off the bus"),
    92: ("warning", "many corrected memory errors"),
    94: ("warning", "uncorrectable memory error, contained: restart the application"),
    95: ("critical", "uncorrectable memory error, not contained: reset the GPU"),
    119: ("critical", "the GPU's system processor does not answer"),
    120: ("critical", "error of the GPU's system processor"),
    154: ("warning", "the recommended recovery action changed"),
}
_UNKNOWN: tuple[Severity, str] = ("warning", "see NVIDIA's XID catalog")


class XidLog:
    """What was reported of one GPU; outlives the driver's being opened again. Thread-safe."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._was_watched = False
        self._trouble = ""
        self._total = 0
        self._critical_ns: deque[int] = deque(maxlen=1000)
        self._recent: deque[tuple[int, XidEvent]] = deque(maxlen=_RECENT_MAX)

    def add(self, xid: int, gpu_instance: int | None) -> None:
        """One was reported just now."""
        now_ns = self._clock()
        severity, text = _CATALOG.get(xid, _UNKNOWN)
        event = XidEvent(
            xid=xid,
            observed_at=instant(now_ns),
            severity=severity,
            text=text,
            gpu_instance=gpu_instance,
        )
        with self._lock:
            self._total += 1
            self._recent.append((now_ns, event))
            if severity == "critical":
                self._critical_ns.append(now_ns)

    def set_watched(self) -> None:
        """From now on errors are heard of."""
        with self._lock:
            self._was_watched = True
            self._trouble = ""

    def set_deaf(self, trouble: str) -> None:
        """From now on they are not, and why."""
        with self._lock:
            self._trouble = trouble

    def read(self, errors: dict[str, str]) -> XidMetrics | None:
        """What was heard so far; None: nobody ever listened. While deaf, `xid` is an error."""
        since_ns = self._clock() - _RECENT_NS
        with self._lock:
            if self._trouble:
                errors["xid"] = self._trouble
            if not self._was_watched:
                return None
            return XidMetrics(
                events_total=self._total,
                critical_10m_count=sum(at_ns > since_ns for at_ns in self._critical_ns),
                recent=[event for at_ns, event in self._recent if at_ns > since_ns],
            )


class XidWatch:
    """Listens to one GPU, in a daemon thread, into its log."""

    def __init__(self, handle: object, log: XidLog) -> None:
        self._handle = handle
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xid-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, which takes up to `WAIT_MILLISECONDS`."""
        self._stop.set()

    def has_stopped(self, timeout_seconds: float) -> bool:
        """Whether the thread has ended, or does within this time."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except nvml.NVMLError as error:
                if error.value in NOT_OFFERED:
                    return
                self._log.set_deaf(f"XID errors cannot be heard of: {error}")
                if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                    return
                self._stop.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        events = nvml.nvmlEventSetCreate()
        try:
            nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, events)
            self._log.set_watched()
            while not self._stop.is_set():
                event = _next(events)
                if event is not None and event.eventType == nvml.nvmlEventTypeXidCriticalError:
                    whole = event.gpuInstanceId == _WHOLE_GPU
                    self._log.add(event.eventData, None if whole else event.gpuInstanceId)
        finally:
            or_none(nvml.nvmlEventSetFree, events)


def _next(events: object) -> Any:  # noqa: ANN401 - a ctypes structure
    """The next event; None when there was none for a while."""
    try:
        return nvml.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_TIMEOUT:
            return None
        raise
