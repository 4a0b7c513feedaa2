"""Numbers of a text against its evidence."""

import pytest

from handlers.insights.numbers import stray_number

EVIDENCE = "use 85.37 %, 1,234 requests, ttft_p95_seconds 0.5, 4 to 6 replicas, -5.5 USD, 12 GiB"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("nothing counted", id="none"),
        pytest.param("at 85.37 %", id="as-it-stands"),
        pytest.param("at 85.4%", id="rounded"),
        pytest.param("at 85 percent", id="two-digits-percent-in-words"),
        pytest.param("at 85 per cent", id="per-cent"),
        pytest.param("a share of 0.8537", id="percent-as-ratio"),
        pytest.param("a share of 0.854", id="rounded-ratio"),
        pytest.param("1234 requests", id="without-separator"),
        pytest.param("1'234 requests", id="apostrophe"),
        pytest.param("1\u202f234 requests", id="narrow-space"),
        pytest.param("1.234e3 requests", id="exponent"),
        pytest.param("1.2k requests", id="thousands-rounded"),
        pytest.param("ttft_p95_seconds is 0.5", id="word-with-digits"),
        pytest.param("half of it", id="half-is-0.5"),
        pytest.param("from four to six", id="words"),
        pytest.param("4-6 replicas", id="range"),
        pytest.param("costs 5.5 USD", id="sign-left-out"),
        pytest.param("12GiB", id="unit-attached"),
        pytest.param("\u0664 replicas", id="arabic-digit"),
        pytest.param("this one comes first", id="one-and-first"),
        pytest.param("1.234 thousand requests", id="scale-in-a-word"),
        pytest.param("a dozen GiB", id="dozen"),
        pytest.param("one thousand two hundred and thirty-four requests", id="words-together"),
        pytest.param("fifty per cent of it", id="percent-all-in-words"),
        pytest.param("1/2 of it", id="half-as-a-fraction"),
        pytest.param("between four and six", id="words-apart"),
        pytest.param("four requests a second", id="second"),
        pytest.param("multiple nodes, several of them often", id="no-number-at-all"),
    ],
)
def test_numbers_of_the_evidence_may_be_written(text: str) -> None:
    assert stray_number(text, EVIDENCE) is None


@pytest.mark.parametrize(
    ("text", "stray"),
    [
        pytest.param("at 42 %", "42 %", id="invented"),
        pytest.param("at 86 %", "86 %", id="rounded-wrongly"),
        pytest.param("at 80 %", "80 %", id="one-digit-that-counts"),
        pytest.param("85 requests", "85", id="percentage-as-count"),
        pytest.param("1234 %", "1234 %", id="count-as-percentage"),
        pytest.param("1,235 requests", "1,235", id="separator"),
        pytest.param("1_235 requests", "1_235", id="underscore"),
        pytest.param("1200 requests", "1200", id="rounded-to-hundreds"),
        pytest.param("12k requests", "12k", id="factor-hidden-in-a-letter"),
        pytest.param("4e6 requests", "4e6", id="factor-hidden-in-an-exponent"),
        pytest.param("1.234 requests", "1.234", id="german-separator"),
        pytest.param("the p95", "95", id="part-of-a-word"),
        pytest.param("twenty requests", "twenty", id="word"),
        pytest.param("Twice as many", "Twice", id="factor-in-a-word"),
        pytest.param("hundreds of them", "hundreds", id="hundreds"),
        pytest.param("1e999", "1", id="beyond-floats"),
        pytest.param("9" * 400, "9" * 400, id="infinite"),
        pytest.param("five million", "five million", id="words-multiplied"),
        pytest.param("\uff17 replicas", "7", id="full-width-digit"),
        pytest.param("\u00be of it", "3", id="fraction-sign"),
        pytest.param("x\u2077", "7", id="superscript"),
        pytest.param("\u4e94 replicas", "\u4e94", id="chinese-numeral"),
        pytest.param("on NODE_A7", "7", id="behind-a-stand-in"),
        pytest.param("busy at 400 %", "400 %", id="whole-count-as-percentage"),
        pytest.param("up by 550 %", "550 %", id="amount-as-percentage"),
        pytest.param("four percent", "four percent", id="count-as-percentage-in-words"),
        pytest.param("12 percentage points", "12 percentage points", id="percentage-points"),
        pytest.param("4 million requests", "4 million", id="factor-in-a-word-behind"),
        pytest.param("12 thousand requests", "12 thousand", id="thousand-behind"),
        pytest.param("forty-six replicas", "forty-six", id="words-with-a-hyphen"),
        pytest.param("a fifth of them", "fifth", id="part"),
        pytest.param("two thirds of them", "two thirds", id="parts"),
        pytest.param("4/6 of them", "4/6", id="fraction-of-numbers-that-occur"),
        pytest.param("4/0 of them", "4/0", id="divided-by-zero"),
        pytest.param("a couple of nodes", "couple", id="couple"),
        pytest.param("demand is doubling", "doubling", id="doubling"),
        pytest.param("it quadrupled", "quadrupled", id="quadrupled"),
        pytest.param("grew fourfold", "fourfold", id="fold"),
        pytest.param("grew 4-fold", "4-fold", id="fold-of-digits"),
        pytest.param("halving the queue", "halving", id="halving"),
    ],
)
def test_other_numbers_are_found_however_they_are_written(text: str, stray: str) -> None:
    found = stray_number(text, EVIDENCE)

    assert found is not None
    assert found.strip() == stray


@pytest.mark.parametrize(
    ("text", "evidence", "stray"),
    [
        pytest.param("100 % busy", "1 GPU", "100 %", id="one-is-not-all"),
        pytest.param("1 GPU", "100 % busy", "1", id="all-is-not-one"),
        pytest.param("1.0 of it", "100 % busy", None, id="all-as-a-share"),
        pytest.param("0 requests, zero use", "0 %", None, id="nothing-is-nothing"),
        pytest.param("twice as many", "2 replicas", "twice", id="two-is-not-twice"),
        pytest.param("twice as many", "it restarted Twice", None, id="twice-as-said"),
        pytest.param("fifty percent", "50 GPUs", "fifty percent", id="fifty-is-not-half"),
    ],
)
def test_shares_and_comparisons_are_no_counts(text: str, evidence: str, stray: str | None) -> None:
    assert stray_number(text, evidence) == stray


def test_digits_within_words_of_the_evidence_are_no_numbers_of_it() -> None:
    assert stray_number("95 requests", EVIDENCE) == "95"


def test_a_long_text_takes_no_time() -> None:
    assert stray_number("a" * 100_000 + "1_" * 10_000, EVIDENCE) is not None
