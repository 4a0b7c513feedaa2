"""The live view shows what the streams hold and what comes."""

import io
import os
import re
import termios
import time
from typing import Any

import msgspec
import pytest
from rich.console import Console

from agent.bus import Bus
from agent.fleet import Choice
from agent.views.live import HELP, LiveView
from agent.views.terminal_keys import Keys
from schemas.alert_api import AlertFilter, AlertsReply
from schemas.api import RecommendationsReply
from schemas.protocols import Answer, PublishError, RequestError
from schemas.units import instant, token
from tests.support import samples
from tests.support.advice import advice
from tests.support.insights import alert
from tests.support.waiting import until


def drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=160, height=60)
    console.print(view.render(width=160, height=60))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


async def test_the_view_shows_recent_metrics_at_once_and_new_ones_as_they_come(bus: Bus) -> None:
    now = instant(time.time_ns())
    view = LiveView(bus, console=Console(file=io.StringIO()))
    await bus.publish(samples.host("n1", cpu=0.42, memory=0.5, observed_at=now))
    await until_kept(bus)

    await view.subscribe()
    at_once = drawn(view)
    await bus.publish(samples.host("n2", cpu=0.17, memory=0.5, observed_at=now, simulated=True))
    await until(lambda: "n2" in drawn(view))

    assert "42%" in at_once
    assert " 50%" in at_once
    assert "simulated" not in at_once.splitlines()[0]
    assert "simulated" in drawn(view).splitlines()[0]
    assert "try --simulate-engines 4" in drawn(view)
    await view.unsubscribe()


@pytest.mark.parametrize(
    "payload", [b"\xff", b'{"node":"\xff"}', b'{"a":' * 2000], ids=["bytes", "text", "nested"]
)
async def test_a_bad_message_does_not_end_the_view(bus: Bus, payload: bytes) -> None:
    now = instant(time.time_ns())
    await bus.publish_raw("alert.raised.warning.node.n1.r", payload, message_id="bad")
    await bus.publish_raw("recommendation.scale_up.p", payload, message_id="bad")
    await bus.send("metrics.host.bad", payload)
    await until_kept(bus)
    view = LiveView(bus, console=Console(file=io.StringIO()))

    await view.subscribe()
    await bus.send("metrics.host.bad", payload)
    await bus.publish(samples.host("n1", observed_at=now))

    await until(lambda: "n1" in drawn(view))
    assert bus.counters["bad_messages_total"] == 1
    await view.unsubscribe()


async def test_names_from_strangers_are_shown_and_not_obeyed(bus: Bus) -> None:
    now = instant(time.time_ns())
    view = LiveView(bus, console=Console(file=io.StringIO(), height=60))
    heard_ns = time.time_ns()
    view.accept(samples.gpu("g0", "n1", name="H100\x1b[2J [/bold]"), heard_ns)
    model = "meta-llama/Llama-3.1-8B"
    view.accept(
        samples.engine("e0", "n1", model=model, pool=token(model), observed_at=now), heard_ns
    )

    shown = drawn(view)

    assert r"H100\x1b[2J [/bold]" in shown
    assert f" {model} " in shown


async def until_kept(bus: Bus) -> None:
    while (await bus.stream_bounds("METRICS"))[1] == 0:
        continue


async def test_a_low_terminal_shows_all_sections_in_24_lines(bus: Bus) -> None:
    view = LiveView(bus, console=Console(file=io.StringIO(), width=80, height=24))
    heard_ns = time.time_ns()
    for node in range(30):
        hot = samples.gpu("g0", f"n{node}", utilization_ratio=0.5, temperature_celsius=70)
        view.accept(samples.host(f"n{node}", cpu=0.4, memory=0.5), heard_ns)
        view.accept(hot, heard_ns)
        view.accept(samples.engine("e0", f"n{node}", waiting=3, running=2), heard_ns)

    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(view.render(), end="")
    lines = str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "30 nodes · 30 GPUs 50% busy" in text
    assert "60 running, 90 waiting" in text
    assert all(f"\n{header} " in text for header in ("POOL", "ENGINE", "GPU", "NODE"))
    assert "what is open is not known" in text
    assert "what advice stands is not known" in text
    assert "more" in text


def test_a_narrow_terminal_spares_columns_and_cuts_no_header() -> None:
    view = LiveView(Handlers(), console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    now = instant(time.time_ns())
    for message in (
        samples.host("gpu-node-1", cpu=0.4, memory=0.5, disks={"/": 0.7}, pool="chat"),
        samples.gpu("g0", "gpu-node-1", utilization_ratio=0.5, temperature_celsius=70),
        samples.engine("e0", "gpu-node-1", waiting=3, running=2, kv=0.5, observed_at=now),
    ):
        view.accept(message, time.time_ns())

    console = Console(file=io.StringIO(), width=60, height=40)
    console.print(view.render(width=60, height=40))
    text = str(console.file.getvalue())  # type: ignore[attr-defined]

    assert max(map(len, text.splitlines())) <= 60
    tables = [line for line in text.splitlines()[2:] if "is not known" not in line]
    assert "…" not in "".join(tables)
    assert all(f"\n{header} " in text for header in ("POOL", "ENGINE", "GPU", "NODE"))


def test_the_summary_says_first_what_matters_and_leaves_out_what_is_not_measured() -> None:
    view = LiveView(Handlers(), console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    now = instant(time.time_ns())
    view.accept(samples.engine("e0", waiting=3, running=2, observed_at=now), time.time_ns())
    view.accept(samples.gpu("g0", utilization_ratio=0.5), time.time_ns())
    silent = drawn(view)
    measured = samples.gpu("g0", utilization_ratio=0.5, power_watts=700.0, temperature_celsius=70)
    view.accept(measured, time.time_ns())

    assert "1 GPU 50% busy · 2 running, 3 waiting\n" in re.sub(" +\n", "\n", silent)
    assert "2 running, 3 waiting · 700 W · hottest 70 °C" in drawn(view)


def test_a_bar_is_read_without_colours() -> None:
    view = LiveView(Handlers(), console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    view.accept(samples.host("n1", cpu=0.06, memory=1.0), time.time_ns())

    assert "╸─────   6%" in drawn(view)
    assert "━━━━━━ 100%" in drawn(view)


class Handlers:
    """A connection on which handlers answer what they are told here."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: dict[str, bytes] = {}

    async def request(self, subject: str, payload: bytes = b"", **_: object) -> Answer:
        name = subject.rsplit(".", 1)[-1]
        self.asked[name] = payload
        if name not in self.answers:
            raise RequestError(503, "nobody is there")
        return Answer(payload=msgspec.json.encode(self.answers[name]), headers={})


async def test_what_nobody_answered_is_not_known_and_what_was_answered_is() -> None:
    now = instant(time.time_ns())
    handlers = Handlers()
    view = LiveView(handlers, console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    await view.refresh()
    unknown, unknown_text = view.snapshot(), drawn(view)
    handlers.answers["list"] = AlertsReply(
        answered_at=now, rows=[], total=0, silenced=[], silenced_total=2
    )
    handlers.answers["recommendations"] = RecommendationsReply(answered_at=now, rows=[], total=0)
    await view.refresh()
    known, known_text = view.snapshot(), drawn(view)

    assert (unknown.alerts, unknown.silenced_alerts, unknown.is_advice_told) == (None, None, False)
    assert "no alert is open" not in unknown_text
    assert "no advice stands" not in unknown_text
    assert (known.alerts, known.silenced_alerts, known.is_advice_told) == ([], 2, True)
    assert (unknown.open_alerts, known.open_alerts) == (None, 0)
    assert "no alert is open" in known_text
    assert "no advice stands" in known_text


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        pytest.param(Choice(), AlertFilter(), id="all"),
        pytest.param(Choice(node="n1"), AlertFilter(scope="node", id="n1"), id="node"),
        pytest.param(Choice(pool="m/x"), AlertFilter(pool=token("m/x")), id="pool"),
    ],
)
async def test_alerts_are_those_of_the_choice_and_all_of_them_count(
    choice: Choice, asked: AlertFilter
) -> None:
    row = alert()
    reply = AlertsReply(
        answered_at=row.decided_at,
        rows=[row],
        total=4321,
        silenced=[],
        silenced_total=0,
        by_severity={"critical": 4000, "warning": 321},
    )
    handlers = Handlers(list=reply)
    view = LiveView(handlers, console=Console(file=io.StringIO()), choice=choice)  # type: ignore[arg-type]

    await view.refresh()

    assert msgspec.json.decode(handlers.asked["list"], type=AlertFilter) == asked
    assert "4000 critical · 321 warning" in drawn(view)
    assert "… 4320 more" in drawn(view)
    assert (view.snapshot().open_alerts, view.snapshot().alerts) == (4321, [row])


async def test_advice_that_was_heard_stands_no_more_once_the_handlers_say_so() -> None:
    now_ns = time.time_ns()
    told = advice()
    handlers = Handlers()
    view = LiveView(handlers, console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    view.accept(told, now_ns)
    await view.refresh()
    heard = view.snapshot().fleet.advice
    handlers.answers["recommendations"] = RecommendationsReply(
        answered_at=instant(now_ns), rows=[], total=0
    )
    await view.refresh()

    assert heard == [told]
    assert view.snapshot().fleet.advice == []


async def test_a_guest_who_may_not_read_streams_sees_what_comes(bus: Bus) -> None:
    class OnlyListens:
        """A connection that may not read streams nor ask."""

        names = bus.names

        async def subscribe(self, subject: str, take: Any) -> Any:
            return await bus.subscribe(subject, take)

        async def read(self, *_: object, **__: object) -> Any:
            raise PublishError("denied")
            yield

        async def request(self, *_: object, **__: object) -> Any:
            raise RequestError(503, "denied")

    view = LiveView(OnlyListens(), console=Console(file=io.StringIO()))  # type: ignore[arg-type]
    await view.subscribe()
    await bus.publish(samples.host("n1", cpu=0.5, observed_at=instant(time.time_ns())))

    await until(lambda: "n1" in drawn(view))
    await view.refresh()
    assert view.snapshot().health is None
    await view.unsubscribe()


@pytest.mark.parametrize(
    ("choice", "where"),
    [(Choice(node="n9"), "of node n9"), (Choice(pool="other"), "in pool other")],
    ids=["node", "pool"],
)
async def test_what_is_not_where_one_looks_is_told_so(bus: Bus, choice: Choice, where: str) -> None:
    view = LiveView(bus, console=Console(file=io.StringIO()), choice=choice)
    for sample in (samples.host(), samples.gpu(pool="chat"), samples.engine()):
        view.accept(sample, time.time_ns())

    text = drawn(view)

    for what in ("no node", "no GPU", "no engine"):
        assert f"{what} {where} is heard of" in text
    assert "--simulate" not in text
    assert "POOL" not in text


async def test_keys_choose_sections_and_orders_and_end_the_view(bus: Bus) -> None:
    view = LiveView(bus, console=Console(file=io.StringIO()), whole_screen=True)
    heard_ns = time.time_ns()
    for number, busy in enumerate((0.1, 0.9, None)):
        view.accept(samples.gpu(f"g{number}", index=number, utilization_ratio=busy), heard_ns)

    def order() -> list[int]:
        return [row.index for row in view.snapshot().fleet.gpus]

    view.press("g")
    orders = [order()]
    for key in ("s", "r"):
        view.press(key)
        orders.append(order())
    alone = drawn(view)
    view.press("down")
    scrolled = drawn(view)
    view.press("d")
    advice = drawn(view)
    view.press("q")

    assert orders == [[0, 1, 2], [1, 0, 2], [0, 1, 2]]
    assert "by busy ratio, reversed" in alone
    assert "NODE" not in alone
    assert ("#0" in alone, "#0" in scrolled) == (True, False)
    assert "GPU" not in advice.replace("g GPUs", "").partition("\n")[2].partition("\n")[2]
    assert len(HELP) <= 80
    assert view.quit.is_set()


async def test_keys_come_from_the_terminal_which_is_given_back_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = os.openpty()
    pressed: list[str] = []
    with os.fdopen(theirs, "r", encoding="utf-8") as terminal, os.fdopen(ours, "wb", 0) as user:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(terminal.fileno())
        with Keys(pressed.append):
            user.write(b"g")
            await until(lambda: pressed == ["g"])
            user.write(b"\x1b[B")
            await until(lambda: pressed == ["g", "down"])

        assert termios.tcgetattr(terminal.fileno()) == before
