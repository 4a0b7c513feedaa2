"""`resource-agent alerts` and `silence`: what is open, what happened, the rules, silences."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from agent import human
from agent.bus import Bus
from agent.cli.commands import console
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json
from agent.cli.start import Where, ask, fail
from agent.client import ResourceAgent
from agent.identity import user_name
from schemas.alert_api import AlertsReply, RulesReply, RuleState, SilencesReply, SilenceState
from schemas.alerts import AlertRule
from schemas.analysis import Alert, Scope, Severity
from schemas.units import token_or_none

R = TypeVar("R")

COLOURS: dict[Severity, str] = {"critical": "red", "warning": "yellow", "info": "cyan"}
RANKS: tuple[Severity, ...] = ("info", "warning", "critical")

SeverityOption = Annotated[
    Severity | None, typer.Option("--severity", help="only these and worse ones")
]
ScopeOption = Annotated[Scope | None, typer.Option("--scope", help="node, pool or fleet")]

app = typer.Typer(name="alerts", help="Shows open alerts, their history, and the rules.")
silence_app = typer.Typer(name="silence", help="Silences alerts for a while.", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def alerts(
    context: typer.Context,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    severity: SeverityOption = None,
    scope: ScopeOption = None,
    id_: Annotated[str | None, typer.Option("--id", help="only on this node or pool")] = None,
    pool: Annotated[str | None, typer.Option(help="only of this pool")] = None,
    rule: Annotated[str | None, typer.Option(help="only of this rule")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="what was raised, updated and cleared")
    ] = False,
    since: Annotated[str, typer.Option(help="how far back --history goes, like 12h or 7d")] = "1d",
    watch: Annotated[bool, typer.Option("--watch", help="then what comes, until Ctrl-C")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="at most this many")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Show the alerts that are open, worst first; those that are silenced apart."""
    if context.invoked_subcommand is not None:
        return
    since_seconds = _seconds(since)
    chosen: dict[str, Any] = {
        "severity": severity,
        "scope": scope,
        "id": token_or_none(id_),
        "pool": token_or_none(pool),
        "rule": rule,
    }

    async def work(bus: Bus) -> None:
        agent = ResourceAgent(bus)
        # Before anything is asked: what happens meanwhile is told, too.
        live = await _Live(bus, chosen, as_json=as_json).begin() if watch else None
        shown: list[Alert] = []
        if history:
            past = await agent.alert_history(seconds=since_seconds, limit=limit, **chosen)
            shown = past.rows
            if as_json and not watch:
                print_json(past)
            else:
                _print_transitions(shown, as_json=as_json)
                if not shown and not watch:
                    console.print("[dim]nothing happened[/]")
        elif not watch or not as_json:
            reply = await agent.alerts(limit=limit, **chosen)
            if as_json:
                print_json(reply)
            else:
                _print_open(reply, is_chosen=any(one is not None for one in chosen.values()))
        if live is not None:
            await live.run(shown)

    where = (config, state_dir, password_file, nats_url)
    ask(where, work, quiet=as_json, limit_seconds=None if watch else 10.0)


class _Live:
    """Prints transitions as they come."""

    def __init__(self, bus: Bus, chosen: dict[str, Any], *, as_json: bool) -> None:
        self._bus = bus
        self._chosen = chosen
        self._as_json = as_json
        self._heard: asyncio.Queue[Alert] = asyncio.Queue()
        self._decode: Callable[[bytes], Alert] = msgspec.json.Decoder(Alert).decode

    async def begin(self) -> "_Live":
        await self._bus.subscribe(Alert.pattern(), self._take)
        return self

    def _take(self, _subject: str, payload: bytes) -> None:
        alert = self._decode(payload)
        if _is_chosen(alert, self._chosen):
            self._heard.put_nowait(alert)

    async def run(self, shown: list[Alert]) -> None:
        """Print what was heard but those shown before, until the bus is closed."""
        closed = asyncio.create_task(self._bus.closed.wait())
        while not closed.done():
            heard = asyncio.create_task(self._heard.get())
            await asyncio.wait({closed, heard}, return_when=asyncio.FIRST_COMPLETED)
            if heard.done() and heard.result() not in shown:
                _print_transitions([heard.result()], as_json=self._as_json)
            heard.cancel()


def _is_chosen(alert: Alert, chosen: dict[str, Any]) -> bool:
    severity = chosen["severity"]
    return (
        (severity is None or RANKS.index(alert.severity) >= RANKS.index(severity))
        and chosen["scope"] in {None, alert.scope}
        and chosen["id"] in {None, alert.id}
        and chosen["pool"] in {None, alert.pool}
        and chosen["rule"] in {None, alert.rule, alert.rule.split("-", 1)[0]}
    )


@app.command("rules")
def rules(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the rules, and what is wrong with records in `fleet-config`."""
    where = (config, state_dir, password_file, nats_url)
    _show_rules(_ask(where, lambda agent: agent.alert_rules(), quiet=as_json), as_json=as_json)


@app.command("set-rule")
def set_rule(
    name: Annotated[str, typer.Argument(help="a rule that is there, or a new one")],
    changes: Annotated[
        list[str],
        typer.Argument(help="FIELD=VALUE …, like metric=engine.requests_waiting warning=8"),
    ],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    expected_version: Annotated[
        int | None, typer.Option(help="refuse if the rule has another version")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a rule, or change fields of one; it takes effect at once and is kept."""
    fields = dict(_field(change) for change in changes)
    where = (config, state_dir, password_file, nats_url)

    async def work(agent: ResourceAgent) -> RulesReply:
        return await agent.set_alert_rule(name, expected_version=expected_version, **fields)

    _show_rules(_ask(where, work, quiet=as_json), as_json=as_json)


@app.command("rm-rule")
def rm_rule(
    name: Annotated[str, typer.Argument(help="as `alerts rules` lists it")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove a rule; its open alerts are cleared. `reset-rule` brings a built-in one back."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, lambda agent: agent.delete_alert_rule(name), quiet=as_json)
    if not as_json:
        console.print(f"removed rule {escape(name)}")
    else:
        print_json(reply)


@app.command("reset-rule")
def reset_rule(
    name: Annotated[str, typer.Argument(help="a rule of the settings")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Go back to what the settings say of a rule."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, lambda agent: agent.reset_alert_rule(name), quiet=as_json)
    _show_rules(reply, as_json=as_json)


@silence_app.command("add")
def add(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    rule: Annotated[str, typer.Option(help="pattern of the rule, like 'gpu_*'")] = "*",
    id_: Annotated[str, typer.Option("--id", help="pattern of node or pool; fleet: all")] = "*",
    scope: ScopeOption = None,
    for_: Annotated[str | None, typer.Option("--for", help="how long, like 30m or 2h")] = None,
    until: Annotated[
        datetime | None, typer.Option(help="or until then, UTC, like 2027-01-15T08:00:00")
    ] = None,
    start: Annotated[datetime | None, typer.Option(help="from then on, UTC; default: now")] = None,
    author: Annotated[str | None, typer.Option(help="who wants it; default: the user")] = None,
    comment: Annotated[str, typer.Option(help="why")] = "",
    future: Annotated[
        bool, typer.Option("--future", help="also where no rule matches the pattern yet")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Silence alerts for a while; they are recorded all the same, and listed apart."""
    if (for_ is None) == (until is None):
        fail(ValueError("say how long: either --for 2h or --until 2027-01-15T08:00:00"), code=2)
    seconds = None if for_ is None else _seconds(for_)

    async def work(agent: ResourceAgent) -> SilenceState:
        return await agent.silence(
            author=author or user_name(),
            rule=rule,
            scope=scope,
            id=id_,
            seconds=seconds,
            starts_at=start and start.replace(tzinfo=UTC),
            ends_at=until and until.replace(tzinfo=UTC),
            comment=comment,
            future=future,
        )

    where = (config, state_dir, password_file, nats_url)
    state = _ask(where, work, quiet=as_json)
    if as_json:
        print_json(state)
        return
    until_text = _clock(state.silence.ends_at)
    console.print(
        f"silence [bold]{state.silence.silence_id}[/] is {state.state} until {until_text}, "
        f"upon {state.alerts} open alert{'' if state.alerts == 1 else 's'}"
    )


@silence_app.command("ls")
def ls(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List silences, those that ended within a day included."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, lambda agent: agent.silences(), quiet=as_json)
    _show_silences(reply, as_json=as_json)


@silence_app.command("rm")
def rm(
    silence_id: Annotated[str, typer.Argument(help="as `silence ls` lists it")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take a silence back."""
    where = (config, state_dir, password_file, nats_url)
    reply = _ask(where, lambda agent: agent.unsilence(silence_id), quiet=as_json)
    if as_json:
        print_json(reply)
    else:
        console.print(f"took back silence {escape(silence_id)}")


def _ask(where: Where, work: Callable[[ResourceAgent], Awaitable[R]], *, quiet: bool) -> R:
    return ask(where, lambda bus: work(ResourceAgent(bus)), quiet=quiet)


def _seconds(text: str) -> float:
    from agent.recorded_load import seconds_of  # noqa: PLC0415 - the light commands must start fast

    try:
        return seconds_of(text)
    except ValueError as error:
        fail(error, code=2)


def _field(change: str) -> tuple[str, Any]:
    name, separator, value = change.partition("=")
    if not separator or name not in AlertRule.__struct_fields__ or name == "name":
        known = ", ".join(field for field in AlertRule.__struct_fields__ if field != "name")
        fail(ValueError(f"{change!r} is not FIELD=VALUE; fields: {known}"), code=2)
    try:
        return name, value if name == "summary" else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def _print_open(reply: AlertsReply, *, is_chosen: bool) -> None:
    for title, rows, total in (
        ("", reply.rows, reply.total),
        ("silenced", reply.silenced, reply.silenced_total),
    ):
        if title and rows:
            console.print(f"\n[dim]{title}[/]")
        for alert in rows:
            open_seconds = max(0.0, (reply.answered_at - alert.raised_at).total_seconds())
            by = f" [dim](silence {escape(alert.silenced_by)})[/]" if alert.silenced_by else ""
            console.print(
                f"[{COLOURS[alert.severity]}]{alert.severity:8}[/] "
                f"{human.duration(open_seconds):>9}  {_text(alert)}{by}",
                soft_wrap=True,
            )
        if total > len(rows):
            console.print(f"[dim]… and {total - len(rows)} more: --limit shows more[/]")
    if not reply.rows:
        console.print(
            # Others may be: no all-clear.
            ("no such alert is open" if is_chosen else "[green]no alert is open[/]")
            + (" but silenced ones" if reply.silenced else "")
        )


def _print_transitions(rows: Iterable[Alert], *, as_json: bool) -> None:
    for alert in rows:
        if as_json:
            print(msgspec.json.encode(alert).decode(), flush=True)
            continue
        colour = "green" if alert.transition == "cleared" else COLOURS[alert.severity]
        by = f" [dim](silence {escape(alert.silenced_by)})[/]" if alert.silenced_by else ""
        console.print(
            f"[dim]{_clock(alert.decided_at)}[/] [{colour}]{alert.transition:8} "
            f"{alert.severity:8}[/] {_text(alert)}{by}",
            soft_wrap=True,
        )
        console.file.flush()


def _text(alert: Alert) -> str:
    note = " [dim](simulated)[/]" if alert.simulated else ""
    return escape(human.printable(alert.text)) + note


def _clock(moment: datetime) -> str:
    """In the time of this machine's user."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _show_rules(reply: RulesReply, *, as_json: bool) -> None:
    if as_json:
        print_json(reply)
        return
    table = Table(box=None, pad_edge=False)
    for column in (
        "rule",
        "state",
        "metric",
        "scope",
        "info",
        "warning",
        "critical",
        "for",
        "version",
    ):
        is_number = column in ("info", "warning", "critical", "for", "version")
        table.add_column(
            column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number
        )
    for state in reply.rules:
        table.add_row(*_rule_cells(state), style="" if state.state == "in_force" else "dim")
    console.print(table)
    for key, why in reply.problems.items():
        console.print(f"[red]refused[/] {escape(key)}: {escape(human.printable(why))}")


def _rule_cells(state: RuleState) -> list[str]:
    rule = state.rule
    metric = rule.metric
    if rule.relative_to is not None:
        metric += f"\nbase: {rule.relative_to.rpartition('.')[2]}"

    def limit(value: float | None) -> str:
        if value is None:
            return "–"
        shown = f"{value:.4g}"
        if rule.relative_to is not None and rule.relative == "times":
            shown += " base"
        elif rule.relative_to is not None:
            shown = f"base {'-' if value < 0 else '+'} {abs(value):.4g}" if value else "base"
        return f"{'≥' if rule.comparison == '>=' else '≤'} {shown}"

    scope = rule.scope if rule.aggregate is None else f"{rule.aggregate} of {rule.scope}"
    return [
        rule.name,
        state.state.replace("_", " "),
        escape(metric),
        scope,
        *(limit(value) for value in (rule.info, rule.warning, rule.critical)),
        human.duration(rule.for_seconds),
        str(state.version) if state.version else "settings",
    ]


def _show_silences(reply: SilencesReply, *, as_json: bool) -> None:
    if as_json:
        print_json(reply)
        return
    if not reply.rows:
        console.print("[dim]there are no silences[/]")
        return
    table = Table(box=None, pad_edge=False)
    for column in (
        "silence",
        "state",
        "rule",
        "on",
        "from",
        "until",
        "alerts",
        "author",
        "comment",
    ):
        table.add_column(column, overflow="fold")
    for state in reply.rows:
        one = state.silence
        cells = [
            one.silence_id,
            state.state,
            one.rule,
            one.id if one.scope is None else f"{one.scope} {one.id}",
            _clock(one.starts_at),
            _clock(one.ends_at),
            str(state.alerts),
            one.author,
            one.comment,
        ]
        table.add_row(
            *(escape(human.printable(cell)) for cell in cells),
            style="dim" if state.state == "expired" else "",
        )
    console.print(table)
