import itertools
import string

import msgspec
import pytest

from schemas.units import Token, paired


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        pytest.param("node-1", "g0", "node-1-g0", id="no dash in the second"),
        pytest.param("a", "b-c", "a-b-c-1bd4f32127", id="a dash in the second"),
        pytest.param("n" * 100, "g" * 27, "n" * 100 + "-" + "g" * 27, id="128 characters"),
        pytest.param("a", "0123456789", "a-0123456789-543356f452", id="like digits of a digest"),
    ],
)
def test_two_names_as_one(first: str, second: str, name: str) -> None:
    assert paired(first, second) == name


def test_pairs_have_names_of_their_own_that_are_tokens() -> None:
    parts = ["a", "b", "c", "a-b", "b-c", "-", "_", "0123456789"]
    parts += [long + end for long in ("n" * 63, "n" * 127) for end in string.ascii_lowercase[:3]]
    # Names that look like another pair's name, digest and all.
    parts += [paired("a", "b-c"), paired("a", "b-c").rpartition("-")[2]]
    pairs = list(itertools.product(parts, parts))

    names = {paired(first, second) for first, second in pairs}

    assert len(names) == len(pairs)
    for name in names:
        assert msgspec.convert(name, Token) == name
