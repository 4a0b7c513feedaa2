"""The option --namespace: its rule, and what is said where nobody serves one."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.bus import Bus
from agent.cli.start import Where, ask, fail
from agent.namespaces import explained
from schemas.protocols import RequestError
from schemas.units import token

T = TypeVar("T")


def checked(name: str | None) -> str | None:
    """`name`, where a namespace can have it; else wrong usage: another one is not what was meant.

    Clients would ask for `token(name)`, a name that nobody has typed.
    """
    if name is not None and token(name) != name:
        text = (
            f"--namespace {name!r:.80} cannot be a namespace: 1 to 64 ASCII letters, digits, "
            "- and _ make a name"
        )
        fail(ValueError(text), code=2)
    return name


def ask_cache(
    where: Where,
    namespace: str,
    work: Callable[[Bus], Awaitable[T]],
    *,
    quiet: bool,
    limit_seconds: float,
) -> T:
    """Run `work` on that bus; where nobody serves the namespace, say which there are."""

    async def told(bus: Bus) -> T:
        try:
            return await work(bus)
        except RequestError as error:
            raise await explained(bus, namespace, error) from error

    return ask(where, told, quiet=quiet, limit_seconds=limit_seconds)
