"""The services' event loop: uvloop, or asyncio's own where there is none."""

import asyncio
import sys

import pytest
import uvloop

from agent import event_loop


async def loop_in_use() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_the_services_run_on_uvloop() -> None:
    assert isinstance(event_loop.run(loop_in_use()), uvloop.Loop)


def test_without_uvloop_they_run_on_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    assert isinstance(event_loop.run(loop_in_use()), asyncio.SelectorEventLoop)


def test_what_the_program_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        event_loop.run(fails())
