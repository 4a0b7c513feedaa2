"""Advice on the GPUs of a pool, from what each needed at most: a cheaper model, fewer nodes."""

from collections.abc import Sequence

import msgspec

from handlers.given import GivenAdvice, GivenState
from handlers.prices import PriceList
from handlers.rightsizing.consolidation import pack, with_figures_of
from handlers.rightsizing.consolidation_advice import plan_message, saving_of
from handlers.rightsizing.consolidation_advice import recommend as consolidate
from handlers.rightsizing.consolidation_replay import Replay, replay
from handlers.rightsizing.gpu_models import GpuModels
from handlers.rightsizing.node_loads import Measured, node_loads
from handlers.rightsizing.peaks import MINUTE_NS, WINDOWS_AN_HOUR
from handlers.rightsizing.pool_peaks import PoolPeaks
from handlers.rightsizing.right_size import right_sizes
from handlers.rightsizing.right_size_advice import recommend as right_size
from handlers.settings import HandlersSettings
from schemas.analysis import Scope
from schemas.changes import Move
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit, Moment
from schemas.scaling import Recommendation

LEAST_NODES = 2
"""A pool of one node has nothing to consolidate."""


class _Snapshot(msgspec.Struct):
    parts: list[msgspec.Raw]
    given: list[GivenState]
    plans: dict[str, list[Move]] = {}


class GpuAdviceHandler:
    """Follows what each GPU of a pool needed, by ten minutes, and advises from that.

    A pool is looked at every ten minutes; advice is given once the same was found `confirm_times`
    times in a row, and ends after as many times without. What was not measured is a gap, and a
    GPU with more than a tenth of gaps in `history_hours` keeps its model from being advised on.
    Of real GPUs alone where there are any.
    """

    name = "gpu_advice"
    scope: Scope = "pool"
    consumes: tuple[type[Message], ...] = (GpuMetrics, HostMetrics)
    # The open minute, of which the snapshot knows nothing.
    window_ns = 2 * MINUTE_NS

    def __init__(self, settings: HandlersSettings) -> None:
        self._settings = settings.gpu_advice
        self._states = settings.utilization
        self._prices = PriceList(settings.prices)
        self._models = GpuModels(settings.gpu_models)
        self._peaks = PoolPeaks(self._settings.history_hours * WINDOWS_AN_HOUR)
        self._ticked_ns = 0
        self._right_size = GivenAdvice(_models, self._settings.confirm_times)
        self._consolidate = GivenAdvice(_places, self._settings.confirm_times)
        self._given = (self._right_size, self._consolidate)
        self._plans: dict[str, list[Move]] = {}  # the last one of each pool
        self._snapshot: bytes | None = None

    def handle(self, message: GpuMetrics | HostMetrics, now: Moment) -> Sequence[Emit]:
        """Add the sample to the open minute of its GPU or host."""
        if message.pool is not None:
            self._peaks.add(message.pool, message, now.ns)
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Close minutes that are over, and look at the pools whose ten minutes are."""
        before_ns, self._ticked_ns = self._ticked_ns, now.ns
        self._snapshot = None
        emits = [emit for given in self._given for emit in given.expire(now)]
        for name in self._peaks.close(before_ns, now.ns):
            emits += self._look_at(name, now)
        return emits

    def snapshot(self) -> bytes | None:
        """The histories of the GPUs and hosts, by pool, as far as they fit, and the advice."""
        if self._snapshot is None:
            parts = self._peaks.snapshot(self._settings.snapshot_bytes)
            given = [one.snapshot() for one in self._given]
            whole = _Snapshot(parts, given, self._plans)
            self._snapshot = msgspec.msgpack.encode(whole)
        return self._snapshot

    def restore(self, snapshot: bytes) -> None:
        """Take them over; open minutes stay."""
        restored = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        self._peaks.restore(restored.parts)
        for given, state in zip(self._given, restored.given, strict=False):
            given.restore(state)
        self._plans = restored.plans
        self._snapshot = None

    def _look_at(self, name: str, now: Moment) -> list[Emit]:
        parts = self._peaks.measured(name)
        if name not in self._peaks:
            self._plans.pop(name, None)
            return [emit for given in self._given for emit in given.forget(name, now)]
        end_ns = self._peaks.end_ns(name)
        gpus = [one for one in parts if one.part.gpu]
        found = right_sizes(
            gpus,
            name,
            self._models,
            self._prices,
            self._settings.right_size,
            active_ratio=self._states.gpu_active_ratio,
        )
        new = right_size(name, found, self._settings, end_ns, now) if found else None
        return [*self._right_size.propose(name, new, now), *self._plan(name, parts, end_ns, now)]

    def _plan(self, name: str, parts: list[Measured], end_ns: int, now: Moment) -> list[Emit]:
        """The plan for fewer nodes, and advice to carry it out where it is worth that."""
        limits = self._settings.consolidate
        nodes, left_out = node_loads(
            parts,
            name,
            self._prices,
            active_ratio=self._states.gpu_active_ratio,
            held_ratio=self._states.gpu_held_memory_ratio,
        )
        if len(nodes) + left_out.total() < LEAST_NODES:
            return self._consolidate.propose(name, None, now)
        moves = pack(nodes, limits)
        before = self._plans.get(name, [])
        replayed = replay(nodes, before, limits) if before else None
        still_fits = replayed is not None and replayed.fits
        before = with_figures_of(nodes, before) if still_fits else []
        is_better = (saving_of(moves) or 0.0) > (1 + limits.better_ratio) * (
            saving_of(before) or 0.0
        )
        # A plan that still holds stays, though another day would find another: people act on it.
        if before and not is_better:
            moves = before
        else:
            replayed = replay(nodes, moves, limits)
        if replayed is None or not replayed.fits:
            moves, replayed = [], Replay((), ())
        if moves:
            self._plans[name] = moves
        else:
            self._plans.pop(name, None)
        simulated = any(one.part.simulated for one in parts)
        plan = plan_message(
            name, nodes, left_out, moves, replayed, self._settings, now, simulated=simulated
        )
        new = consolidate(plan, nodes, replayed, self._settings, end_ns, now) if moves else None
        return [
            Emit(plan, f"consolidation.{name}.{now.ns}"),
            *self._consolidate.propose(name, new, now),
        ]


def _models(advice: Recommendation) -> str:
    """From which model to which; how many of them, and the figures, move."""
    return " ".join(sorted(f"{one.gpu_from}>{one.gpu_to}" for one in advice.gpu_changes))


def _places(advice: Recommendation) -> str:
    """From where to where."""
    return " ".join(f"{one.node}.{one.gpu}>{one.to_node}.{one.to_gpu}" for one in advice.moves)
