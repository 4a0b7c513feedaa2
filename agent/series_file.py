"""Reads one column of a CSV file as a series of equal steps, and refuses what is not one."""

import csv
import dataclasses
import datetime
import gzip
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

TIME_COLUMNS = ("t_s", "t", "seconds", "timestamp")
"""Seconds or ISO 8601; the first of these that the file has is checked for gaps."""
ENCODING = "utf-8-sig"
"""UTF-8, with or without the mark that spreadsheets write before it."""


class SeriesError(ValueError):
    """The file holds no such series; says where and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class SeriesFile:
    """The values of a column, and the time of each row as it is written there.

    A recorded stream may have steps without a value; a file has none.
    """

    values: Sequence[float | None]
    times: Sequence[str]


def read_series(path: Path, column: str, step_seconds: float) -> SeriesFile:
    """The values of `column`: one a row, every `step_seconds`, finite and not negative.

    Without a time column the rows are taken as they come, and their times are `0`,
    `step_seconds`, ….

    Raises:
        SeriesError: no such column, a value that cannot be, a gap, another step, or no rows.
        OSError: the file cannot be read.
    """
    try:
        with _opened(path) as opened:
            rows = csv.DictReader(opened, skipinitialspace=True)
            names = rows.fieldnames or []
            if column not in names:
                known = ", ".join(names) or "none, it is empty"
                raise SeriesError(f"{path}: no column {column!r}; there are: {known}")
            if names.count(column) > 1:
                raise SeriesError(f"{path}: {names.count(column)} columns are named {column!r}")
            time_column = next((name for name in TIME_COLUMNS if name in names), None)
            if time_column == column:
                time_column = None
            values: list[float] = []
            times: list[str] = []
            for row in rows:
                values.append(_value(row[column], f"{path}, line {rows.line_num}: {column}"))
                times.append((row[time_column] or "") if time_column else "")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise SeriesError(f"{path}: {error}") from error
    if len(values) < 2:
        raise SeriesError(f"{path}: {len(values)} rows; a back-test needs at least two")
    if time_column is None:
        times = [f"{step * step_seconds:g}" for step in range(len(values))]
    else:
        _check_times(times, step_seconds, f"{path}: {time_column}")
    return SeriesFile(values, times)


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=ENCODING, newline="")
    return path.open(encoding=ENCODING, newline="")


def _value(text: str | None, where: str) -> float:
    if not (text or "").strip():
        raise SeriesError(f"{where} is missing; fill or cut such rows first")
    try:
        value = float(text or "")
    except ValueError:
        raise SeriesError(f"{where} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise SeriesError(f"{where} is {text}; fill or cut such rows first")
    if value < 0:
        raise SeriesError(f"{where} is {text}; a load cannot be negative")
    return value


def _seconds(text: str, where: str) -> float:
    """Seconds, or a day and time; one that names no zone is taken as UTC."""
    if not text.strip() or _is_number(text):
        return _value(text, where)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise SeriesError(f"{where} is {text!r}, neither seconds nor a time of ISO 8601") from None
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_times(times: Sequence[str], step_seconds: float, where: str) -> None:
    seconds = [_seconds(time, f"{where}, row {row}") for row, time in enumerate(times, 1)]
    steps = [after - before for before, after in itertools.pairwise(seconds)]
    for row, step in enumerate(steps, 2):
        if math.isclose(step, step_seconds, rel_tol=1e-3):
            continue
        if math.isclose(steps[0], step, rel_tol=1e-3) and len(set(steps)) == 1:
            raise SeriesError(f"{where} grows by {step:g} a row, but --step is {step_seconds:g}")
        raise SeriesError(
            f"{where} grows by {step:g} s in row {row}, not by {step_seconds:g}: "
            "a gap, or rows out of order; fill or cut them first"
        )
