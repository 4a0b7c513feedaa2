import gzip
from pathlib import Path

import pytest

from agent.series_file import SeriesError, read_series


def written(folder: Path, text: str, name: str = "series.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_column_is_read_with_the_times_of_its_rows(tmp_path: Path) -> None:
    series = read_series(written(tmp_path, "t_s,a,b\n60,1,2\n120,3,4.5\n"), "b", 60.0)

    assert (series.values, series.times) == ([2.0, 4.5], ["60", "120"])


def test_without_a_time_column_rows_follow_each_other(tmp_path: Path) -> None:
    series = read_series(written(tmp_path, "load\n1\n2\n3\n"), "load", 30.0)

    assert (series.values, series.times) == ([1.0, 2.0, 3.0], ["0", "30", "60"])


def test_times_of_iso_8601_are_read(tmp_path: Path) -> None:
    text = "timestamp,load\n2026-05-13 23:59:00,1\n2026-05-14T00:00:00+00:00,2\n"

    series = read_series(written(tmp_path, text), "load", 60.0)

    assert series.times == ["2026-05-13 23:59:00", "2026-05-14T00:00:00+00:00"]


def test_a_small_number_is_no_time_of_iso_8601(tmp_path: Path) -> None:
    series = read_series(written(tmp_path, "t,load\n1e-05,1\n60,2\n"), "load", 60.0)

    assert series.values == [1.0, 2.0]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_the_mark_and_blanks_of_spreadsheets_are_passed_over(tmp_path: Path, suffix: str) -> None:
    data = b"\xef\xbb\xbfload, t_s\r\n1, 60\r\n2, 120\r\n"
    path = tmp_path / f"series.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "csv.gz" else data)

    series = read_series(path, "load", 60.0)

    assert (series.values, series.times) == ([1.0, 2.0], ["60", "120"])


def test_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "series.csv.gz"
    path.write_bytes(gzip.compress(b"load\n1\n2\n"))

    assert read_series(path, "load", 60.0).values == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "no column 'load'; there are: none", id="empty"),
        pytest.param("t_s,a\n0,1\n", "no column 'load'; there are: t_s, a", id="missing"),
        pytest.param("load\n", "0 rows; a back-test needs at least two", id="no rows"),
        pytest.param("load\n1\n", "1 rows; a back-test needs at least two", id="one row"),
        pytest.param("load\n1\nNaN\n", "line 3: load is NaN", id="nan"),
        pytest.param("load\n1\ninf\n", "line 3: load is inf", id="infinite"),
        pytest.param("load\n1\n-2\n", "line 3: load is -2; a load cannot be negative", id="-2"),
        pytest.param("load,x\n1,1\n,1\n", "line 3: load is missing; fill or cut", id="hole"),
        pytest.param("load\n1\nmany\n", "line 3: load is 'many', not a number", id="text"),
        pytest.param("x,load\n1,1\n1\n", "line 3: load is missing; fill or cut", id="short row"),
        pytest.param(
            "t_s,load\n0,1\n60,1\n180,1\n", "t_s grows by 120 s in row 3, not by 60", id="gap"
        ),
        pytest.param("t_s,load\n60,1\n0,1\n60,1\n", "t_s grows by -60 s in row 2", id="back"),
        pytest.param(
            "t_s,load\n0,1\n10,1\n20,1\n", "t_s grows by 10 a row, but --step is 60", id="step"
        ),
        pytest.param("t_s,load\n0,1\n,1\n", "t_s, row 2 is missing", id="no time"),
        pytest.param(
            "t,load\nnoon,1\n,1\n", "t, row 1 is 'noon', neither seconds nor a time", id="noon"
        ),
        pytest.param(
            "t,load\n2026-05-13 00:00,1\n2026-05-13T00:02Z,1\n2026-05-13T00:03Z,1\n",
            "t grows by 120 s in row 2, not by 60",
            id="gap of days and times",
        ),
        pytest.param("load,load\n1,2\n1,2\n", "2 columns are named 'load'", id="named twice"),
    ],
)
def test_what_is_no_series_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SeriesError, match=r"series\.csv") as refused:
        read_series(written(tmp_path, text), "load", 60.0)

    assert says in str(refused.value)


@pytest.mark.parametrize(
    "data", [b"load\n1\n2\n", gzip.compress(b"load\n1\n2\n")[:-9]], ids=["plain", "cut off"]
)
def test_a_broken_gzip_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "series.csv.gz"
    path.write_bytes(data)

    with pytest.raises(SeriesError, match=r"series\.csv\.gz"):
        read_series(path, "load", 60.0)
