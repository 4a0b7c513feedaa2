"""Which numbers of a text do not occur in its evidence.

Worked values, evidence `use 85.37 %, 1234 requests, ttft_p95_seconds 0.5`:

- `85.37 %`, `85.4%`, `85 percent`, `0.8537` and `0.854` occur; `86 %`, `80 %` and `85` do not:
  a number may be rounded to two digits that count or more, and a percentage is a share.
- `1,234`, `1 234` (a narrow space), `1.234e3` and `1.2k` occur; `1235` and `1200` do not.
- `p95` alone does not occur, `ttft_p95_seconds` does: words with digits must stand as they are.
- `half` occurs (0.5), `two`, `twice`, `a dozen` do not: words that say a number are numbers. `one`
  and `first` are left alone; they seldom count anything.

Signs and units other than per cent are not compared.
"""

import math
import re
import unicodedata
from collections.abc import Iterator

_SEPARATORS = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", "_"))
_NUMBER = re.compile(
    r"(?P<digits>\d{1,3}(?:[,_']\d{3})+(?!\d)|\d+)(?P<fraction>\.\d+)?"
    r"(?P<exponent>e[+-]?\d{1,2}(?!\w))?(?:(?P<thousands>[kmbt])(?!\w))?"
    r"(?P<percent>\s*(?:%|per\s?cent\b|percent|pct\b))?",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<!\w)[^\W\d]\w*(?:\.\w+)*")
_UNITS = (
    "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS: dict[str, float] = {
    **{word: value for value, word in enumerate(_UNITS.split()) if word != "_"},
    **{word: value * 10 for value, word in enumerate(_TENS.split()) if word != "_"},
    **{"dozen": 12, "dozens": 12, "hundred": 100, "hundreds": 100},
    **{"thousand": 1e3, "thousands": 1e3, "million": 1e6, "millions": 1e6, "billion": 1e9},
    **{"half": 0.5, "halved": 0.5, "halves": 0.5, "third": 1 / 3, "thirds": 1 / 3},
    **{"quarter": 0.25, "quarters": 0.25, "twice": 2, "thrice": 3, "both": 2, "pair": 2},
    **{"double": 2, "doubled": 2, "doubles": 2, "triple": 3, "tripled": 3, "tenfold": 10},
}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "": 1.0}
_LEAST_DIGITS = 2


def stray_number(text: str, evidence: str) -> str | None:
    """The first number of `text`, as it stands there, that is not in `evidence`; None: all are."""
    evidence = _normal(evidence)
    with_digits = {name for name in _NAME.findall(evidence) if any(map(str.isdigit, name))}

    def without_names(text: str) -> str:
        return _NAME.sub(lambda name: " " if name[0] in with_digits else name[0], text)

    known = [value for _, value, _ in _numbers(without_names(evidence))]
    rest = without_names(_normal(text))
    foreign = next((c for c in rest if c.isnumeric() and not c.isascii()), None)
    if foreign is not None:  # numerals that are no digits, as Chinese has them
        return foreign
    for shown, value, step in _numbers(rest):
        if not any(_is(value, step, one) for one in known):
            return shown
    return None


def _normal(text: str) -> str:
    """Digits of any script, fractions and full-width signs as ASCII; thin spaces as `_`."""
    text = unicodedata.normalize("NFKC", text.translate(_SEPARATORS))
    return "".join(
        str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text
    )


def _numbers(text: str) -> Iterator[tuple[str, float, float]]:
    """Each number: as it stands, its value, and the worth of one in its last digit."""
    for match in _NUMBER.finditer(text):
        digits, fraction = re.sub(r"[,_']", "", match["digits"]), match["fraction"] or ""
        factor = _FACTORS[(match["thousands"] or "").lower()] / (100 if match["percent"] else 1)
        if match["exponent"]:
            factor *= 10.0 ** int(match["exponent"][1:])
        step = factor / 10 ** max(0, len(fraction) - 1)
        yield match[0], float(digits + fraction) * factor, step
    for match in _WORD.finditer(text):
        yield match[0], float(_WORDS[match[0].lower()]), 0.0


def _is(value: float, step: float, known: float) -> bool:
    """Whether `value`, shown in steps of `step`, is `known`, exactly or well rounded."""
    if math.isclose(value, known):
        return True
    is_near = abs(value - known) <= 0.5001 * step
    return is_near and value >= 10 ** (_LEAST_DIGITS - 1) * step
