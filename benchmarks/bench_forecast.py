"""How well loads are forecast, against the last value and the best simple model.

`python -m benchmarks.bench_forecast --data DIR`: each step after the training part of each
public series is an origin. The error is the sum of the absolute errors by the sum of the values
(WAPE), in percent; accuracy is 100 less that. The simple models: the last value, the mean of five,
exponential smoothing and a damped trend (their gains chosen on the training part), and the level
along yesterday's profile; "best" is the best of these at each horizon, chosen afterwards.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.traces import Trace
from handlers.forecasting import Forecaster

SEASON_SECONDS = (3600.0, 86_400.0, 604_800.0)
LEAST_SEASON_STEPS = 6
GAINS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
DAMPING = 0.9
HORIZONS_10MIN, HORIZONS_1MIN, HORIZONS_10S = (1, 2, 3, 6), (1, 5, 10, 15), (6, 30, 60, 90)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A series, how far ahead it is forecast, and the share that only trains."""

    trace: Trace
    horizons: tuple[int, ...]
    train_share: float

    def train(self, steps: int) -> int:
        """Steps before the first origin: the share, and a week or a day where there is one."""
        day = round(86_400.0 / self.trace.step_seconds)
        least = 7 * day + 200 if steps > 10 * day else day + 200 if steps > 3 * day else 0
        return max(int(steps * self.train_share), least)


CASES = (
    *(
        Case(Trace(name, f"servegen/{name}_10min.csv.gz", "rate_rps", 600.0), HORIZONS_10MIN, 0.5)
        for name in ("m_large", "m_small")
    ),
    Case(
        Trace("azure2024", "azure2024/conv_requests_1min.csv.gz", "requests", 60.0),
        HORIZONS_1MIN,
        0.4,
    ),
    *(
        Case(Trace(f"azure2023 {name}", "azure2023/conv_10s.csv.gz", name, 10.0), HORIZONS_10S, 0.3)
        for name in ("requests", "input_tokens", "output_tokens")
    ),
    *(
        Case(Trace(f"gentd26 {name}", "gentd26/fleet_57s.csv.gz", name, 57.0), HORIZONS_1MIN, 0.4)
        for name in ("gpu_duty_sum", "qps_generative")
    ),
    Case(
        Trace(
            "alibaba_gpu2023",
            "alibaba_gpu2023/gpu_demand_10min.csv.gz",
            "gpus_requested",
            600.0,
        ),
        HORIZONS_10MIN,
        0.5,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public traces")
    data = parser.parse_args().data
    print(
        "| series | origins | ours | last value | best simple | 80 % interval holds |\n"
        + "|---" * 6
        + "|"
    )
    seconds, steps, wins, total, worst = 0.0, 0, 0, 0, -100.0
    for case in CASES:
        values = case.trace.read(data)
        origins = range(case.train(len(values)) - 1, len(values) - max(case.horizons))
        begun = time.process_time()
        forecasts, bounds = ours(case, values)
        seconds += time.process_time() - begun
        steps += len(values)
        errors = [
            wape(values, origins, horizon, [one[place] for one in forecasts])
            for place, horizon in enumerate(case.horizons)
        ]
        simple = [simple_models(case, values, origins, horizon) for horizon in case.horizons]
        inside = [
            fmean(
                bounds[at][place][0] <= values[at + horizon] <= bounds[at][place][1]
                for at in origins
            )
            for place, horizon in enumerate(case.horizons)
        ]
        best = [min(models.values()) for models in simple]
        last = [models["last value"] for models in simple]
        wins += sum(error <= least + 0.05 for error, least in zip(errors, best, strict=True))
        total += len(errors)
        worst = max(worst, *(e - naive for e, naive in zip(errors, last, strict=True)))
        print(
            f"| {case.trace.name} | {len(origins)} | {texts(errors)} | {texts(last)} | "
            f"{texts(best)} | {' '.join(f'{100 * share:.0f}' for share in inside)} |",
            flush=True,
        )
    print(
        f"\nBest or equal (0.05 points) in {wins} of {total}; worst against the last value "
        f"{worst:+.2f} points; {seconds / steps * 1e3:.2f} ms of CPU a step of four horizons"
    )


def ours(
    case: Case, values: Sequence[float]
) -> tuple[list[list[float]], list[list[tuple[float, float]]]]:
    """Medians and bounds of each step and horizon."""
    seasons = [round(seconds / case.trace.step_seconds) for seconds in SEASON_SECONDS]
    forecaster = Forecaster.make(
        case.horizons, [steps for steps in seasons if steps >= LEAST_SEASON_STEPS]
    )
    medians, bounds = [], []
    for value in values:
        forecaster.update(value)
        estimates = forecaster.estimates()
        medians.append([one.p50 for one in estimates])
        bounds.append([(one.p10, one.p90) for one in estimates])
    return medians, bounds


def simple_models(
    case: Case, values: Sequence[float], origins: range, horizon: int
) -> dict[str, float]:
    """The error of each simple model at one horizon."""
    train = range(10, origins.start)
    holt, damping = min(
        itertools.product(GAINS, GAINS),
        key=lambda gains: wape(values, train, 1, smoothed(values, gains[0], gains[1], 1)),
    )
    models = {
        "last value": list(values),
        "mean of five": [fmean(values[max(0, at - 4) : at + 1]) for at in range(len(values))],
        "smoothing": min(
            (smoothed(values, gain, 0.0, 1) for gain in GAINS),
            key=lambda forecast: wape(values, train, 1, forecast),
        ),
        "damped trend": smoothed(values, holt, damping, horizon),
    }
    day = round(86_400.0 / case.trace.step_seconds)
    if origins.start > day + horizon:
        models["yesterday's profile"] = profiled(values, day, horizon)
    return {name: wape(values, origins, horizon, one) for name, one in models.items()}


def smoothed(values: Sequence[float], gain: float, trend_gain: float, horizon: int) -> list[float]:
    """Holt's linear method with a damped trend; without a trend gain, plain smoothing."""
    level, trend, forecasts = values[0], 0.0, []
    reach = sum(DAMPING**step for step in range(1, horizon + 1))
    for value in values:
        before = level
        level = gain * value + (1.0 - gain) * (level + DAMPING * trend)
        trend = trend_gain * (level - before) + (1.0 - trend_gain) * DAMPING * trend
        trend = trend if trend_gain else 0.0
        forecasts.append(max(0.0, level + reach * trend))
    return forecasts


def profiled(values: Sequence[float], day: int, horizon: int) -> list[float]:
    """The mean of three along the ratio of yesterday's means of nine."""
    forecasts = list(values)
    for at in range(day + 5, len(values)):
        level = fmean(values[at - 2 : at + 1])
        here = fmean(values[at - day - 4 : at - day + 5])
        end = min(at - day + horizon + 5, at + 1)
        there = fmean(values[at - day + horizon - 4 : end])
        forecasts[at] = level * min(2.0, max(0.5, there / max(here, 1e-9)))
    return forecasts


def wape(values: Sequence[float], origins: range, horizon: int, forecast: Sequence[float]) -> float:
    """The sum of the absolute errors by the sum of the values, in percent."""
    errors = sum(abs(forecast[at] - values[at + horizon]) for at in origins)
    return 100.0 * errors / max(sum(values[at + horizon] for at in origins), 1e-9)


def texts(errors: Sequence[float]) -> str:
    return " ".join(f"{error:.1f}" if error >= 10 else f"{error:.2f}" for error in errors)


if __name__ == "__main__":
    main()
