"""Made-up loads for forecasts and scaling: a service by day and night, with jumps and noise."""

import math
import random


def service_load(steps: int, seed: int = 1, *, step_minutes: float = 1.0) -> list[float]:
    """Requests a step around 700: a day, a rate that jumps every few hours, 4 % of noise."""
    dice = random.Random(seed)
    level, values = 0.0, []
    for step in range(steps):
        hours = step * step_minutes / 60.0
        if dice.random() < step_minutes / 180.0:
            level = 0.5 * level + dice.gauss(0.0, 0.15)
        rate = 700.0 * math.exp(level + 0.4 * math.sin(2.0 * math.pi * hours / 24.0))
        values.append(float(round(max(0.0, rate * (1.0 + dice.gauss(0.0, 0.04))))))
    return values
