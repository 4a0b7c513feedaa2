"""One bad reading costs one field."""

from collections.abc import Callable
from typing import TypeVar

from agent.human import reason

ValueT = TypeVar("ValueT")


def attempt(errors: dict[str, str], field: str, read: Callable[[], ValueT | None]) -> ValueT | None:
    """What `read` returns, or None with the reason in `errors` below `field`."""
    try:
        return read()
    except Exception as error:
        errors[field] = f"{type(error).__name__}: {reason(error)}"
        return None
