"""`resource-agent report` and the client's questions about money, over a real server."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from agent.bus import Bus
from agent.client import ResourceAgent
from handlers.queries.latest import LatestStore
from handlers.queries.service import query_endpoints
from schemas.protocols import RequestError
from tests.support.program import resource_agent
from tests.support.spending import NOW_NS, SETTINGS, record

pytestmark = pytest.mark.bus


@pytest.fixture
async def served(bus: Bus, nats_url: str) -> str:
    """A server with a day of hours in its streams, and handlers that answer."""
    await record(bus, 24, every=20)
    endpoints = query_endpoints(LatestStore(60), bus, lambda: NOW_NS, SETTINGS, Counter())
    await bus.serve("handlers", endpoints, description="test")
    return nats_url


async def run(url: str, *arguments: object) -> tuple[int, str, str]:
    done = await asyncio.to_thread(resource_agent, "report", *arguments, "--nats-url", url)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_the_report_is_printed_in_each_format(served: str) -> None:
    text = await run(served, "--since", "1d")
    data = await run(served, "--since", "24h", "--json", "--pool", "chat")
    markdown = await run(served, "--format", "markdown", "--node", "n1", "--simulated")

    assert (text[0], data[0], markdown[0]) == (0, 0, 0), text[2] + data[2] + markdown[2]
    assert text[1].startswith("The fleet, ")
    assert json.loads(data[1])["id"] == "chat"
    assert data[2] == ""
    assert markdown[1].startswith("# Node n1, ")
    assert "| Cost | " in markdown[1]


async def test_the_report_is_written_in_the_format_of_its_name(served: str, tmp_path: Path) -> None:
    page, data = tmp_path / "fleet.html", tmp_path / "fleet.json"

    for path in (page, data):
        code, out, err = await run(served, "--since", "2d", "--output", path)
        assert (code, out) == (0, ""), err

    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(data.read_text())["scope"] == "fleet"


async def test_a_page_is_written_beside_what_is_printed(served: str, tmp_path: Path) -> None:
    page, data = tmp_path / "page.html", tmp_path / "fleet.json"

    printed = await run(served, "--since", "2d", "--html", page)
    first = page.read_text()
    asked = await run(served, "--since", "2d", "--json", "--html", page)
    written = await run(served, "--since", "2d", "--output", data, "--html", page)

    assert printed[1].startswith("The fleet, ")
    assert printed[2].endswith(f"wrote {page}\n")
    assert first.startswith("<!doctype html>")
    assert first == page.read_text()
    assert json.loads(asked[1])["scope"] == json.loads(data.read_text())["scope"] == "fleet"
    assert (written[0], written[1]) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--since", "7"), "write a time like"),
        (("--since", "91d"), "90 days"),
        (("--pool", "a", "--node", "b"), "not both"),
        (("--json", "--format", "html"), "give --json or --format html, not both"),
    ],
    ids=["no unit", "too long", "pool and node", "two formats"],
)
async def test_wrong_usage_is_told_in_a_line(
    nats_url: str, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = await run(nats_url, *arguments)

    assert (code, out) == (2, "")
    assert text in err


async def test_without_handlers_it_says_so(bus: Bus, nats_url: str) -> None:
    code, out, err = await run(nats_url)

    assert (code, out) == (1, "")
    assert "nobody serves" in err


async def test_a_request_that_fails_leaves_no_empty_file(
    bus: Bus, nats_url: str, tmp_path: Path
) -> None:
    new, old = tmp_path / "new.html", tmp_path / "old.md"
    old.write_text("of yesterday")

    code, _, _ = await run(nats_url, "--html", new, "--output", old)

    assert code == 1
    assert not new.exists()
    assert old.read_text() == "of yesterday"


async def test_a_file_that_cannot_be_written_is_an_error(served: str, tmp_path: Path) -> None:
    for option in ("--output", "--html"):
        code, out, err = await run(served, option, tmp_path / "no" / "folder.html")

        assert (code, out) == (1, "")
        assert "No such file or directory" in err


async def test_the_client_asks_for_money(served: str) -> None:
    async with await ResourceAgent.connect(served) as agent:
        waste = await agent.get_waste(pool="chat")
        trends = await agent.get_trends(node="n1")
        opportunities = await agent.get_opportunities()
        report = await agent.get_report(seconds=86_400.0)
        utilization = await agent.analyze_utilization()
        with pytest.raises(RequestError, match="pool"):
            await agent.get_report(pool="chat", node="n1")

    assert [(row.scope, row.id) for row in waste.rows] == [("pool", "chat")]
    assert [(row.scope, row.id) for row in trends.rows] == [("node", "n1")]
    assert opportunities.rows == []
    assert report.figures.usd is not None
    assert utilization.rows == []
