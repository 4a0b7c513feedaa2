"""`resource-agent archive dead`: evictions that could not be archived."""

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
import typer

from agent import human
from agent.archive_client import ArchiveClient
from agent.bus import Bus
from agent.cli.archive_asking import UNAVAILABLE, ask_archive
from agent.cli.namespace import checked
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json
from agent.cli.start import errors, fail
from schemas.api import DeadLetter
from schemas.protocols import RequestError

Outcome = Literal["sent back", "dropped", "not found", "failed"]


class Done(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one letter."""

    id: int
    outcome: Outcome
    namespace: str | None = None
    error: str | None = None


def dead(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="only of this one; default: of all", callback=checked
        ),
    ] = None,
    retry: Annotated[
        list[int] | None, typer.Option("--retry", help="id to send back; may be repeated")
    ] = None,
    drop: Annotated[
        list[int] | None, typer.Option("--drop", help="id to remove; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List evictions that could not be archived and why; send them back, or drop them.

    Each that is named is tried and told, whatever became of the others; exit code 1 where one is
    not there, or failed.
    """
    where = (config, state_dir, password_file, nats_url)
    both = set(retry or ()) & set(drop or ())
    if both:
        fail(ValueError(f"either --retry or --drop {min(both)}, not both"), code=2)
    if not retry and not drop:
        letters = ask_archive(where, lambda bus: _listed(bus, namespace), as_json=as_json)
        _show(letters, as_json=as_json)
        return

    async def work(bus: Bus) -> list[Done]:
        there = {letter.id: letter for letter in await _listed(bus, namespace)}
        chosen = [*((one, True) for one in retry or ()), *((one, False) for one in drop or ())]
        return [
            await _do(bus, letter, there.get(letter), send_back=send_back)
            for letter, send_back in dict.fromkeys(chosen)
        ]

    done = ask_archive(where, work, as_json=as_json)
    if as_json:
        print_json({"letters": done})
    else:
        _tell(done)
    raise SystemExit(0 if all(one.error is None for one in done) else 1)


async def _listed(bus: Bus, namespace: str | None) -> list[DeadLetter]:
    if namespace is not None:
        client = ArchiveClient(bus, namespace)
        letters = [letter async for letter in client.dead()]
        if not letters:
            await client.check_known()
        return letters
    return [letter async for letter in ArchiveClient(bus).dead(everywhere=True)]


async def _do(bus: Bus, number: int, letter: DeadLetter | None, *, send_back: bool) -> Done:
    if letter is None:
        return Done(id=number, outcome="not found", error=f"no dead letter {number}")
    if not letter.namespace:
        return Done(id=number, outcome="failed", error="where it came from is not known")
    client = ArchiveClient(bus, letter.namespace)
    try:
        await (client.retry(number) if send_back else client.drop(number))
    except RequestError as error:
        gone = error.code == 404
        text = error.text
        if error.code in UNAVAILABLE:
            text += "; it may have been done: list them"
        outcome: Outcome = "not found" if gone else "failed"
        return Done(id=number, outcome=outcome, namespace=letter.namespace, error=text)
    outcome = "sent back" if send_back else "dropped"
    return Done(id=number, outcome=outcome, namespace=letter.namespace)


def _tell(done: Iterable[Done]) -> None:
    counts: dict[str, int] = {}
    for one in done:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
        print(f"{one.id}  {one.outcome}" + (f"  {human.printable(one.error)}" if one.error else ""))
    errors.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def _show(letters: list[DeadLetter], *, as_json: bool) -> None:
    if as_json:
        print_json({"letters": letters})
        return
    for letter in letters:
        what = "-" if letter.key is None else human.printable(repr(letter.key))
        where, why = human.printable(letter.namespace), human.printable(letter.reason)
        print(f"{letter.id}  {letter.died_at:%F %T}Z  {where}  {what}  {why}")
