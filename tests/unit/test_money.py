"""How an amount of money is written."""

import pytest

from schemas.money import usd


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "$0"),
        (0.00001, "<$0.0001"),
        (0.0123, "$0.012"),
        (0.1, "$0.10"),
        (4.0, "$4.00"),
        (99.99, "$99.99"),
        (1234.6, "$1,235"),
        (-4.0, "-$4.00"),
    ],
)
def test_money_is_written_in_one_way(value: float, text: str) -> None:
    assert usd(value) == text
