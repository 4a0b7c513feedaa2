"""The live view shows what the streams hold and what comes."""

import io
import time

import pytest
from rich.console import Console

from agent.bus import Bus
from agent.live import LiveView
from schemas.units import instant, token
from tests.support import samples
from tests.support.waiting import until


def drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(view.render())
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
    assert "50% of 64.0 GiB" in at_once
    assert "n2 (simulated)" in drawn(view)
    assert "try --simulate-engines 4" in drawn(view)


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


async def test_names_from_strangers_are_shown_and_not_obeyed(bus: Bus) -> None:
    now = instant(time.time_ns())
    view = LiveView(bus, console=Console(file=io.StringIO(), height=60))
    view.accept(samples.gpu("g0", "n1", name="H100\x1b[2J [/bold]"))
    model = "meta-llama/Llama-3.1-8B"
    view.accept(samples.engine("e0", "n1", model=model, pool=token(model), observed_at=now))

    shown = drawn(view)

    assert r"H100\x1b[2J [/bold]" in shown
    assert f" {model} " in shown


async def until_kept(bus: Bus) -> None:
    while (await bus.stream_bounds("METRICS"))[1] == 0:
        continue


async def test_a_low_terminal_shows_alerts_advice_and_cache_too(bus: Bus) -> None:
    now = instant(time.time_ns())
    view = LiveView(bus, console=Console(file=io.StringIO(), width=80, height=24))
    for node in range(30):
        view.accept(samples.host(f"n{node}", cpu=0.4, memory=0.5, observed_at=now))
        view.accept(samples.gpu("g0", f"n{node}", utilization_ratio=0.5, temperature_celsius=70))
        view.accept(samples.engine("e0", f"n{node}", waiting=3, running=2, observed_at=now))

    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(view.render())
    lines = str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]

    assert len(lines) <= 24
    text = "\n".join(lines)
    assert "GPUs: 30, busy 50% on average" in text
    assert "Engines: 30, 60 running, 90 waiting" in text
    assert "… and 28" in text
    assert "Newest alerts" in text
    assert "Newest advice" in text
