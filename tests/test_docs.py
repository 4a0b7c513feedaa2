"""Generated documents are current, and links and commands in the docs are real."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import typer

from agent.cli.app import app
from agent.collectors.engines.inference import EngineMap
from agent.collectors.engines.sglang import SGLANG
from agent.collectors.engines.vllm import VLLM
from schemas.engines import EngineMetrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "tools/generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "docs/subjects.md",
        "docs/settings.md",
        "docs/engine_metrics.md",
        "docs/alert_rules.md",
        "docs/asyncapi.json",
        "deploy/nats.conf",
    ],
)
def test_generated_files_are_current(name: str) -> None:
    wanted = generator().generated()[name]

    assert (ROOT / name).read_text() == wanted, "run: python tools/generate_docs.py"


def test_every_field_on_the_bus_says_briefly_what_it_means_and_where_it_is_from() -> None:
    docs = generator()
    meanings = {name: docs.meaning(hint) for name, hint in fields_on_the_bus(docs).items()}

    assert [name for name, text in meanings.items() if not 0 < len(text) < 300] == []


def test_every_field_that_can_be_null_says_when() -> None:
    docs = generator()
    hints = fields_on_the_bus(docs)
    nullable = {name: hint for name, hint in hints.items() if "null" in docs.type_name(hint)}

    assert len(nullable) > 100
    assert [name for name, hint in nullable.items() if "null" not in docs.meaning(hint)] == []
    assert [name for name, hint in nullable.items() if "as above" in docs.meaning(hint)] == []


def fields_on_the_bus(docs: ModuleType) -> dict[str, object]:
    """`Struct.field` → its annotation, of all messages, requests and replies."""
    return {
        f"{kind.__name__}.{field}": hint
        for kind in docs.described()
        for field, hint in get_type_hints(kind, include_extras=True).items()
        if field in kind.__struct_fields__
    }


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=lambda engine: engine.source)
def test_each_metric_of_an_engine_is_named_by_the_field_it_is_read_to(engine: EngineMap) -> None:
    docs = generator()
    hints = get_type_hints(EngineMetrics, include_extras=True)
    read_to = {
        **engine.gauges,
        **{f"{field}_total": names for field, names in engine.counters.items()},
        **{f"{field}_p95_seconds": names for field, names in engine.histograms.items()},
    }

    newest = {field: names[0] for field, names in read_to.items()}
    assert [name for field, name in newest.items() if name not in docs.meaning(hints[field])] == []
    assert engine.hits[0] in docs.meaning(hints["prefix_cache_hit_ratio"])
    assert engine.lookups[0] in docs.meaning(hints["prefix_cache_hit_ratio"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]

    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_the_docs_name_exists(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^(?!\.)([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()

    assert set(re.findall(r"resource-agent ([a-z]+)\b", _code(text))) <= known
    assert set(re.findall(r"^ *(?:\$ )?make ([a-z-]+)", _code(text), re.MULTILINE)) <= targets


def _code(text: str) -> str:
    """Only what stands in code blocks and code spans."""
    blocks = re.findall(r"```.*?```", text, re.DOTALL)
    spans = re.findall(r"`[^`\n]+`", text)
    indented = re.findall(r"^ {4}.*$", text, re.MULTILINE)
    return "\n".join([*blocks, *(span.strip("`") for span in spans), *(s[4:] for s in indented)])


def test_every_test_that_the_operators_are_told_of_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/operations.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }

    assert len(named) > 10
    assert named - there == set()


@pytest.mark.parametrize(
    "script",
    sorted([ROOT / "benchmarks/__main__.py", *ROOT.glob("benchmarks/bench_*.py")]),
    ids=lambda script: script.stem,
)
def test_a_benchmark_that_is_asked_for_help_gives_it_and_does_not_start(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])

    with pytest.raises((SystemExit, ModuleNotFoundError)) as ended:
        runpy.run_path(str(script), run_name="__main__")
    if isinstance(ended.value, ModuleNotFoundError):
        pytest.skip("needs the dependency group `bench`")

    assert ended.value.args == (0,)
    assert "usage:" in capsys.readouterr().out
