"""How an amount of money is written, in texts of handlers and commands alike."""

LEAST_USD = 0.0001
"""What is less is not told apart from it."""


def usd(value: float) -> str:
    """`$1,235`, `$12.35`, `$0.012`, `<$0.0001`; below 0 `-$4.00`. A rate adds `/h`."""
    if value < 0:
        return f"-{usd(-value)}"
    if not value:
        return "$0"
    if value >= 0.1:
        return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"
    if value < LEAST_USD:
        return f"<${LEAST_USD}"
    return f"${value:.2g}"
