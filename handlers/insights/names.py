"""Stand-ins for names that a language model must not see: NODE_A for a machine, and back."""

import re
from collections import Counter
from string import ascii_uppercase

_STAND_IN = re.compile(r"\b[A-Z]+_[A-Z]+\b")


def letters(index: int) -> str:
    """`index` in letters alone, A to Z, AA, AB and on, so that no check takes it for a figure."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, len(ascii_uppercase))
        text = ascii_uppercase[rest] + text
    return text


class Names:
    """One stand-in for each name of each kind; what is not one of ours can be told."""

    def __init__(self) -> None:
        self._stand_ins: dict[tuple[str, str], str] = {}
        self._names: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def of(self, kind: str, name: str) -> str:
        """The stand-in of `name`, like `NODE_A`; the same every time."""
        found = self._stand_ins.get((kind, name))
        if found is None:
            found = self._stand_ins[kind, name] = f"{kind}_{letters(self._counts[kind])}"
            self._counts[kind] += 1
            self._names[found] = name
        return found

    def restore(self, text: str) -> str:
        """`text` with the names in place of their stand-ins, in one pass: a name may look so too.

        Raises:
            KeyError: a stand-in that nobody gave out.
        """
        return _STAND_IN.sub(lambda match: self._names[match[0]], text)


def stand_ins(text: str) -> set[str]:
    """All that look like stand-ins in `text`."""
    return set(_STAND_IN.findall(text))
