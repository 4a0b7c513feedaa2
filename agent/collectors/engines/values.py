"""Numbers of a stranger's page, as the contract wants them; what it cannot be is None."""

_MOST = 1e15
_ROUNDING = 0.01
"""How far above 1 a share may be computed: then it is 1, beyond it is no share."""


def count(value: float | None) -> int | None:
    """A whole number, not negative."""
    return round(value) if value is not None and 0 <= value <= _MOST else None


def number(value: float | None) -> float | None:
    """A number, not negative."""
    return value if value is not None and 0 <= value <= _MOST else None


def ratio(value: float | None) -> float | None:
    """A share, 0 to 1."""
    if value is None or not 0 <= value <= 1 + _ROUNDING:
        return None
    return min(1.0, value)
