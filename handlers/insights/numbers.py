"""Which numbers of a text do not occur in its evidence.

Worked values, evidence `use 85.37 %, 1234 requests, ttft_p95_seconds 0.5`:

- `85.37 %`, `85.4%`, `85 percent`, `0.8537` and `0.854` occur; `86 %`, `80 %` and `85` do not:
  a number may be rounded to two digits that count or more, and a percentage is a share.
- Of shares alone: `1 GPU` is no `100 %`, nor `2 replicas` `200 %`; `100 %` is no `1`, but `1.0`.
- `1,234`, `1 234` (a narrow space), `1.234e3`, `1.2k` and `1.2 thousand` occur; `1235` and `1200`
  do not.
- `p95` alone does not occur, `ttft_p95_seconds` does: words with digits must stand as they are.
- `half` occurs (0.5), `a dozen`, `twenty-five`, `fifty per cent`, `a fifth`, `1/4` do not: words
  that say a number are numbers, put together as they are spoken. `one`, `first` and `second` are
  left alone; they seldom count anything.
- `twice`, `doubling`, `threefold`, `halved` compare, which no figure of the evidence does by
  itself: they occur where the evidence says them so, and never by a 2 in it.

Signs and units other than per cent are not compared.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

_SEPARATORS = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", "_"))
_UNITS = (
    "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"
_COUNTS: dict[str, float] = {
    **{word: value for value, word in enumerate(_UNITS.split()) if word != "_"},
    **{word: value * 10 for value, word in enumerate(_TENS.split()) if word != "_"},
    **{"both": 2, "pair": 2, "pairs": 2, "couple": 2, "tens": 10},
}
_SCALES: dict[str, float] = {"dozen": 12, "hundred": 100, "thousand": 1e3}
_SCALES |= {"million": 1e6, "billion": 1e9, "trillion": 1e12}
_SCALES |= {f"{word}s": value for word, value in _SCALES.items()}
_PARTS: dict[str, int] = {
    **{"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6},
    **{"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "twentieth": 20, "hundredth": 100},
    **{"thousandth": 1000},
}
_PARTS |= {f"{word}s": value for word, value in _PARTS.items() if not word.startswith("hal")}
_PERCENT = r"(?P<percent>\s*(?:%|per\s?cent\b|percent(?:age points?)?\b|pct\b))?"
_NUMBER = re.compile(
    r"(?P<digits>\d{1,3}(?:[,_']\d{3})+(?!\d)|\d+)(?P<fraction>\.\d+)?"
    r"(?:/(?P<divisor>\d+)(?![\d.]))?"
    r"(?P<exponent>e[+-]?\d{1,2}(?!\w))?(?:(?P<letter>[kmbt])(?!\w))?"
    rf"(?:[\s-](?P<scale>{'|'.join(_SCALES)})\b)?{_PERCENT}",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<!\w)[^\W\d]\w*(?:\.\w+)*")
_SAID = "|".join([*_COUNTS, *_SCALES, *_PARTS])
_AFTER_SCALE = "|".join(f"(?<={word})" for word in _SCALES)
_BETWEEN = (
    rf"(?:(?<=ty)[\s-]+|(?:{_AFTER_SCALE})(?:\s+and\s+|[\s-]+)|"
    rf"[\s-]+(?=(?:{'|'.join([*_SCALES, *_PARTS])})\b))"
)
"""Between words of one number: twenty-five, two hundred and six, three quarters; not four, six."""
_WORDS = re.compile(
    rf"\b(?P<words>(?:{_SAID})(?:{_BETWEEN}(?:{_SAID}|one))*)\b{_PERCENT}", re.IGNORECASE
)
_FACTOR = re.compile(
    r"\b(?:twice|thrice|tenfold|halv(?:ed|ing)|doubl(?:e[ds]?|ing)|trebl(?:e[ds]?|ing)|"
    r"(?:tri|quadru|quintu|sextu|septu|octu)pl(?:e[ds]?|ing)|"
    rf"(?:\d+|{'|'.join([*_COUNTS, *_SCALES])})[\s-]?fold)\b",
    re.IGNORECASE,
)
_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "": 1.0}
_LEAST_DIGITS = 2


class _Number(NamedTuple):
    """As it stands, what it comes to, and the worth of one in its last digit."""

    shown: str
    value: float
    step: float
    is_percent: bool
    is_share: bool
    """Written as a share of 1 may be: with a fraction, or zero; or a percentage."""


def stray_number(text: str, evidence: str) -> str | None:
    """The first number of `text`, as it stands there, that is not in `evidence`; None: all are."""
    evidence = _normal(evidence)
    with_digits = {name for name in _NAME.findall(evidence) if any(map(str.isdigit, name))}

    def without_names(text: str) -> str:
        return _NAME.sub(lambda name: " " if name[0] in with_digits else name[0], text)

    known = list(_numbers(without_names(evidence)))
    rest = without_names(_normal(text))
    foreign = next((c for c in rest if c.isnumeric() and not c.isascii()), None)
    if foreign is not None:  # numerals that are no digits, as Chinese has them
        return foreign
    said = {match[0].lower() for match in _FACTOR.finditer(evidence)}
    for match in _FACTOR.finditer(rest):
        if match[0].lower() not in said:
            return match[0]
    for number in _numbers(_FACTOR.sub(" ", rest)):
        if not any(_is(number, one) for one in known):
            return number.shown
    return None


def _normal(text: str) -> str:
    """Digits of any script, fractions and full-width signs as ASCII; thin spaces as `_`."""
    text = unicodedata.normalize("NFKC", text.translate(_SEPARATORS))
    return "".join(
        str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text
    )


def _numbers(text: str) -> Iterator[_Number]:
    for match in _NUMBER.finditer(text):
        digits, fraction = re.sub(r"[,_']", "", match["digits"]), match["fraction"] or ""
        factor = _FACTORS[(match["letter"] or "").lower()] / (100 if match["percent"] else 1)
        factor *= _SCALES[match["scale"].lower()] if match["scale"] else 1.0
        if match["exponent"]:
            factor *= 10.0 ** int(match["exponent"][1:])
        divisor = float(match["divisor"] or 1.0)
        value = float(digits + fraction) * factor
        if match["divisor"]:
            value = value / divisor if divisor else math.inf
        step = 0.0 if match["divisor"] else factor / 10 ** max(0, len(fraction) - 1)
        is_percent = match["percent"] is not None
        is_share = is_percent or bool(fraction or match["divisor"]) or value == 0
        yield _Number(match[0], value, step, is_percent, is_share)
    for match in _WORDS.finditer(_NUMBER.sub(lambda number: " " * len(number[0]), text)):
        value, has_part = _spoken(re.findall(r"[a-z]+", match["words"].lower()))
        is_percent = match["percent"] is not None
        value /= 100 if is_percent else 1
        is_share = is_percent or has_part or value == 0
        yield _Number(match[0], value, 0.0, is_percent, is_share)


def _spoken(words: list[str]) -> tuple[float, bool]:
    """What words for numbers come to, and whether there is a part of one among them.

    three hundred and twenty five → 325; two thousand → 2000; a dozen → 12; two thirds → 0.67.
    """
    total = group = 0.0
    parts = 1.0
    for word in words:
        if word in _PARTS:
            parts /= _PARTS[word]
        elif word in _SCALES:
            group = (group or 1.0) * _SCALES[word]
            if _SCALES[word] >= 1000:
                total, group = total + group, 0.0
        elif word != "and":
            group += _COUNTS.get(word, 1)
    return (total + group or 1.0) * parts if parts != 1.0 else total + group, parts != 1.0


def _is(number: _Number, known: _Number) -> bool:
    """Whether `number`, shown in steps, is `known`, exactly or well rounded."""
    are_shares = number.is_share and known.is_share and known.value <= 1
    if number.is_percent != known.is_percent and not are_shares:
        return False
    if math.isclose(number.value, known.value):
        return True
    is_near = abs(number.value - known.value) <= 0.5001 * number.step
    return is_near and number.value >= 10 ** (_LEAST_DIGITS - 1) * number.step
