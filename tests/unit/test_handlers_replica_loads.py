"""The sums of a pool's loads, kept while replicas come, change and go."""

import math
import random
from typing import Any

import pytest

from handlers.scaling.pools import Engines
from handlers.scaling.replica_loads import IN_FLIGHT, RUNNING_MAX, Load, ReplicaLoads, load_of
from schemas.units import SECOND_NS
from tests.support.samples import engine
from tests.support.scaling import replica_loads

PROMPT = Load._fields.index("prompt_tokens_per_second")


def some_load(rng: random.Random) -> Load:
    """Any, of sizes that no plain sum of floats keeps exactly; now and then not measured."""
    sizes = (rng.random(), rng.random() * 1e-12, rng.random() * 1e12, rng.randrange(100), 5e-324)
    values = [None if rng.random() < 0.2 else rng.choice(sizes) for _ in Load._fields]
    return Load._make([*values[:IN_FLIGHT], rng.choice(sizes), *values[IN_FLIGHT + 1 :]])


@pytest.mark.parametrize("seed", range(5))
def test_sums_are_those_of_the_replicas_of_now_whatever_came_and_went(seed: int) -> None:
    rng = random.Random(seed)
    loads = ReplicaLoads()
    there: dict[tuple[str, str], Load] = {}
    for _ in range(500):
        replica = ("n1", str(rng.randrange(20)))
        if rng.random() < 0.3:
            loads.discard(replica)
            there.pop(replica, None)
        else:
            there[replica] = some_load(rng)
            loads.put(replica, there[replica])

        assert loads.replicas == len(there)
        for place in range(len(Load._fields)):
            known = [value for load in there.values() if (value := load[place]) is not None]
            assert loads.total(place) == (math.fsum(known), len(known))


def test_what_went_leaves_nothing_behind() -> None:
    loads = ReplicaLoads()
    loads.put(("n1", "a"), Load(kv_cache_ratio=1e300))
    loads.put(("n1", "b"), Load(kv_cache_ratio=0.1))
    loads.discard(("n1", "a"))
    loads.discard(("n1", "never"))

    assert (loads.replicas, loads.total(1)) == (1, (0.1, 1))


@pytest.mark.parametrize("with_rates", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_a_pool_are_those_of_the_engines_that_are_there(
    seed: int, *, with_rates: bool
) -> None:
    rng = random.Random(seed)
    engines = Engines(30 * SECOND_NS, with_rates=with_rates)
    for step in range(300):
        rates: dict[str, Any] = {
            "prompt_tokens_per_second": rng.choice([None, rng.random() * 1e5]),
            "generation_tokens_per_second": rng.choice([None, rng.random() * 1e-5]),
        }
        of = engine(
            str(rng.randrange(20)), kv=rng.random(), is_sleeping=rng.random() < 0.2, **rates
        )
        engines.expire(step * 5 * SECOND_NS)
        engines.put(of, step * 5 * SECOND_NS)

        anew = replica_loads(engines.metrics.values(), with_rates=with_rates)
        assert 1 < anew.replicas == engines.loads.replicas < 8 or step < 5
        for place in range(len(Load._fields)):
            assert engines.loads.total(place) == anew.total(place)
        is_awake = [one for one in engines.metrics.values() if not one.is_sleeping]
        known = [
            one.prompt_tokens_per_second
            for one in is_awake
            if with_rates and one.prompt_tokens_per_second is not None
        ]
        assert engines.loads.total(PROMPT) == (math.fsum(known), len(known))


def test_requests_in_flight_count_as_far_as_they_are_told() -> None:
    loads = ReplicaLoads()
    loads.put(("n1", "a"), load_of(engine("a", running=3, waiting=2, running_max=8)))
    loads.put(("n1", "b"), load_of(engine("b", running=4, is_sleeping=True, running_max=0)))
    loads.put(("n1", "c"), load_of(engine("c")))

    assert loads.total(IN_FLIGHT) == (9.0, 3)
    assert loads.total(RUNNING_MAX) == (8.0, 1)
