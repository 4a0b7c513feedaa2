"""Prometheus pages as engines serve them, and as nobody should."""

import math
import time

import pytest

from agent.collectors.engines.exposition import (
    MAX_LINE_LENGTH,
    MAX_SERIES,
    PageError,
    Series,
    parse_page,
)

WANTED = frozenset({"a", "b_total", "h_bucket"})


def test_only_wanted_metrics_are_read() -> None:
    page = parse_page(b'# TYPE a gauge\na{x="1"} 2\nother{ 3\na_sum 4\nb_total 5\n', WANTED)

    assert page.series == {"a": [Series({"x": "1"}, 2.0)], "b_total": [Series({}, 5.0)]}


@pytest.mark.parametrize(
    ("line", "series"),
    [
        pytest.param(b"a 1", Series({}, 1.0), id="no-labels"),
        pytest.param(b"a{} 1", Series({}, 1.0), id="empty-labels"),
        pytest.param(b'a{x="y",} 1', Series({"x": "y"}, 1.0), id="trailing-comma"),
        pytest.param(b'a{x="y"} 1.5e+09 1712000000000', Series({"x": "y"}, 1.5e9), id="timestamp"),
        pytest.param(rb'a{x="a\\b\"c\n}"} 1', Series({"x": 'a\\b"c\n}'}, 1.0), id="escapes"),
        pytest.param('a{x="Größe\u2028 {}, #"} 1'.encode(), Series({"x": "Größe\u2028 {}, #"}, 1.0),
                     id="what-else-may-stand-in-a-label"),
        pytest.param(b"a 1\r", Series({}, 1.0), id="carriage-return"),
        pytest.param(b"a\t1", Series({}, 1.0), id="tab"),
        pytest.param(b'a{x="y"} 7 # {trace_id="a b"} 0.67', Series({"x": "y"}, 7.0), id="exemplar"),
        pytest.param(b'a 7 # {trace_id="a"} 0.67 1520879607.789', Series({}, 7.0),
                     id="exemplar-with-time"),
    ],
)  # fmt: skip
def test_a_line_is_read_in_every_form_it_may_have(line: bytes, series: Series) -> None:
    page = parse_page(b"# HELP a b\n" + line + b"\n", WANTED)

    assert page.find(("a",)) == [series]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(b'a{x="\xff"} 1', "not UTF-8", id="not-utf-8"),
        pytest.param(b'a{x="y 1', "not Prometheus text", id="quote-open"),
        pytest.param(b'a{x="y"', "not Prometheus text", id="cut-off"),
        pytest.param(b"a{x=y} 1", "not Prometheus text", id="no-quotes"),
        pytest.param(b"a one", "not Prometheus text", id="no-number"),
        pytest.param(b"a", "not Prometheus text", id="no-value"),
        pytest.param(b"a 1" + b"0" * 400, "not Prometheus text", id="number-beyond-floats"),
        pytest.param(b'a{x="' + b"y" * MAX_LINE_LENGTH + b'"} 1', "bytes", id="long-line"),
        pytest.param(b'a{x="y"} 1\n' * (MAX_SERIES + 1), "more than 10000", id="many-series"),
    ],
)
def test_a_page_that_cannot_be_read_is_refused_and_says_why(body: bytes, text: str) -> None:
    with pytest.raises(PageError) as refused:
        parse_page(body, WANTED)

    assert text in str(refused.value)
    assert len(str(refused.value)) < 300


def test_an_openmetrics_page_must_be_whole() -> None:
    page = parse_page(b"a 1\n# EOF\n", WANTED, is_openmetrics=True)

    assert page.value(("a",)) == 1.0
    with pytest.raises(PageError, match="EOF"):
        parse_page(b"a 1\n", WANTED, is_openmetrics=True)


def test_the_first_name_that_is_there_counts() -> None:
    page = parse_page(b"a 1\nb_total 2\n", WANTED)

    assert page.value(("new", "b_total", "a")) == 2.0
    assert page.value(("new",)) is None
    assert page.total(("new",)) is None
    assert page.buckets(("new",)) == {}


def test_a_gauge_with_several_values_says_nothing_and_a_counter_is_their_sum() -> None:
    page = parse_page(b'a{r="x"} 1\na{r="y"} 2\nb_total{r="x"} 1\nb_total{r="y"} 2\n', WANTED)

    assert page.value(("a",)) is None
    assert page.total(("b_total",)) == 3.0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_not_finite_is_not_measured(value: str) -> None:
    page = parse_page(f'a {value}\nb_total {value}\nh_bucket{{le="1"}} {value}\n'.encode(), WANTED)

    assert page.value(("a",)) is None
    assert page.total(("b_total",)) is None
    assert page.buckets(("h",)) == {}


@pytest.mark.parametrize("values", [("1e308", "1e308"), ("+Inf", "-Inf")], ids=["huge", "both"])
def test_a_counter_without_a_sum_is_not_measured(values: tuple[str, str]) -> None:
    first, second = values
    page = parse_page(f'b_total{{r="x"}} {first}\nb_total{{r="y"}} {second}\n'.encode(), WANTED)

    assert page.total(("b_total",)) is None


def test_buckets_are_added_up_over_the_labels_that_split_them() -> None:
    body = b'h_bucket{w="0",le="1.0"} 1\nh_bucket{w="1",le="1"} 2\nh_bucket{w="0",le="+Inf"} 4\n'

    assert parse_page(body, WANTED).buckets(("h",)) == {1.0: 3.0, math.inf: 4.0}


@pytest.mark.parametrize("bound", ["", "many", "NaN"])
def test_a_bucket_without_a_bound_is_refused(bound: str) -> None:
    page = parse_page(f'h_bucket{{le="{bound}"}} 1\n'.encode(), WANTED)

    with pytest.raises(PageError, match="bucket"):
        page.buckets(("h",))


def test_a_hostile_line_costs_little() -> None:
    body = b'a{x="' + rb"\"" * ((MAX_LINE_LENGTH - 10) // 2) + b'"} 1\n'

    started = time.process_time()
    page = parse_page(body * 10, WANTED)

    assert len(page.find(("a",))) == 10
    assert time.process_time() - started < 2
