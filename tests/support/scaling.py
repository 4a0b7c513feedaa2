"""Loads of replicas, as scaling puts them together."""

from collections.abc import Iterable

from handlers.scaling.replica_loads import ReplicaLoads, load_of
from schemas.engines import EngineMetrics


def replica_loads(engines: Iterable[EngineMetrics], *, with_rates: bool = False) -> ReplicaLoads:
    """Those of `engines`."""
    loads = ReplicaLoads()
    for engine in engines:
        loads.put((engine.node, engine.engine), load_of(engine, with_rates=with_rates))
    return loads
