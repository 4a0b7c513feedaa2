"""The engines of a pool that were heard of late, and the sums that are kept of them."""

import random

import pytest

from handlers.scaling.cache_loss import UsedCaches
from handlers.scaling.pools import Engines
from schemas.units import SECOND_NS
from tests.support.samples import START_NS, engine


@pytest.mark.parametrize("seed", range(4))
def test_sums_are_those_of_the_engines_that_are_left(seed: int) -> None:
    rng = random.Random(seed)
    engines = Engines(20 * SECOND_NS, with_rates=True)
    for second in range(300):
        now_ns = START_NS + second * SECOND_NS
        # From time to time few are heard, so that others are forgotten.
        name = f"e{rng.randrange(2 if second // 30 % 2 else 8)}"
        message = engine(
            name,
            kv=rng.choice([0.0, 0.3, 0.7]),
            kv_cache_capacity_tokens=rng.choice([7, 1_000_003]),
            simulated=rng.random() < 0.5,
        )
        engines.put(message, now_ns)
        engines.expire(now_ns)

        left = list(engines.metrics.values())
        looked_at = UsedCaches.of(left)
        kept = engines.caches
        assert (kept.engines, kept.unknown, kept.tokens) == (
            len(left),
            looked_at.unknown,
            looked_at.tokens,
        )
        assert engines.simulated == sum(one.simulated for one in left)

    engines.expire(now_ns + 20 * SECOND_NS)
    assert (engines.caches.engines, engines.caches.tokens, engines.simulated) == (0, 0.0, 0)
