"""An hour of a small fleet in which loads wander, and values and nodes drop out."""

import random

from handlers.slots import Routed
from tests.support.samples import at, engine, gpu, host

SECONDS = 3600


def recorded(seed: int = 3) -> list[Routed]:
    """An hour of two nodes, two GPUs and four engines, by seed."""
    rng = random.Random(seed)
    messages: list[Routed] = []
    load = 0.5
    for second in range(0, SECONDS, 5):
        if second % 600 == 0:
            load = rng.choice([0.05, 0.5, 0.9, 1.0])
        for node in ("n1", "n2"):
            if node == "n2" and 1000 < second < 1500:
                continue
            samples = [
                host(node, cpu=rng.random(), memory=0.8 + rng.random() / 5, pool="chat"),
                gpu(
                    f"{node}g",
                    node,
                    pool="chat",
                    utilization_ratio=rng.choice([None, load]),
                    temperature_celsius=70 + 20 * load + rng.random(),
                    temperature_slowdown_celsius=87,
                    energy_joules_total=second * 300.0,
                ),
                *(
                    engine(
                        f"{node}e{i}",
                        node,
                        waiting=round(load**4 * 40),
                        kv=load,
                        running=rng.choice([None, round(load * 64)]),
                        running_max=64,
                    )
                    for i in range(2)
                ),
            ]
            for sample in samples:
                moment = at(second + len(messages) % 8 / 10, len(messages) + 1)
                messages.append(Routed(sample, moment))
    return messages
