"""Targets of the scrapers: what is accepted, what they are called, what the bus may change."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.engine_settings import EnginesSettings, EngineTarget, LocalTarget, updated_targets
from agent.settings import SettingsError, load

VARIABLE = "RESOURCE_AGENT_AGENT__ENGINES__TARGETS"


def refusal(*targets: object) -> str:
    with pytest.raises(SettingsError) as refused:
        load(environ={}, options={"agent.engines.targets": ("--engine", list(targets))})
    return str(refused.value)


def test_targets_are_urls_or_tables_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[agent.engines]\ntargets = ["http://gpu-7:8000", '
        '{url = "https://gpu-8/stats", name = "chat-0", pool = "chat", bearer_file = "/run/t"}]\n'
    )

    first, second = load(environ={}, config=path).settings.agent.engines.local_targets()

    assert first == LocalTarget(url="http://gpu-7:8000")
    assert second.bearer_file == "/run/t"
    assert [t.address for t in (first, second)] == [
        "http://gpu-7:8000/metrics",
        "https://gpu-8/stats",
    ]


def test_the_environment_gives_urls_or_json() -> None:
    urls = load(environ={VARIABLE: "http://a:1, http://b:2/m"}).settings.agent.engines
    tables = load(environ={VARIABLE: '[{"url": "http://a:1", "node": "n"}]'}).settings.agent.engines

    assert [t.address for t in urls.local_targets()] == ["http://a:1/metrics", "http://b:2/m"]
    assert tables.local_targets()[0].node == "n"


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("http://127.0.0.1:8000/metrics", "localhost-8000"),
        ("http://[::1]:8000", "localhost-8000"),
        ("http://localhost:8000", "localhost-8000"),
        ("http://gpu-7.lab:8000", "gpu-7-lab-8000"),
        ("https://gpu-7", "gpu-7-443"),
        ("http://[fd00::7]", "fd00-7-80"),
        ("http://10.0.0.7:9400", "10-0-0-7-9400"),
        ("http://gpu-7:8000/a/metrics", "gpu-7-8000-a"),
        ("http://gpu-7:8000/b/prom/", "gpu-7-8000-b-prom-"),
    ],
)
def test_without_a_name_a_target_is_called_by_its_address(url: str, label: str) -> None:
    assert EngineTarget(url=url).label == label


@pytest.mark.parametrize(
    ("target", "text"),
    [
        pytest.param("gpu-7:8000", "must look like http://", id="no-scheme"),
        pytest.param("ftp://gpu-7/metrics", "must look like http://", id="ftp"),
        pytest.param("file:///etc/passwd", "must look like http://", id="file"),
        pytest.param("http://", "must look like http://", id="no-host"),
        pytest.param("http://gpu-7:0", "must look like http://", id="port-0"),
        pytest.param("http://gpu-7:70000", "is not a url", id="port-too-large"),
        pytest.param("http://[::1", "is not a url", id="bracket-open"),
        pytest.param("http://gpu..lab", "is not a url", id="empty-label"),
        pytest.param(f"http://{'a' * 64}.lab", "is not a url", id="label-too-long"),
        pytest.param("http://gpu-7/a b", "must look like http://", id="blank"),
        pytest.param("http://gpu-7/\r\nX: y", "must look like http://", id="header-smuggled"),
        pytest.param("http://gpu-7/metrics#x", "must look like http://", id="fragment"),
        pytest.param({"url": "http://g", "bearer_file": "a", "bearer_variable": "B"}, "not both",
                     id="two-tokens"),
        pytest.param({"url": "http://g", "ca_file": "a"}, "needs an https url", id="ca-only"),
        pytest.param({"url": "http://g", "bearer_variable": "A B"}, "bearer_variable",
                     id="no-variable"),
        pytest.param({"url": "http://g", "name": "a.b"}, "name", id="no-token"),
        pytest.param({"url": "http://g", "requests_running_max": 0}, ">= 1", id="no-request"),
        pytest.param({"url": "http://g", "bearer": "s3cret"}, "bearer", id="unknown-field"),
        pytest.param({"name": "x"}, "url", id="no-url"),
        pytest.param(7, "7", id="a-number"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_is_refused_and_says_why(target: object, text: str) -> None:
    said = refusal(target)

    assert text in said
    assert "agent.engines" in said
    assert "targets" in said
    assert "s3cret" not in said


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    said = refusal("http://user:s3cret@gpu-7:8000/metrics")

    assert "bearer_file" in said
    assert "s3cret" not in said


def test_two_targets_of_one_name_are_refused() -> None:
    said = refusal("http://gpu-7:8000?model=a", "http://gpu-7:8000/metrics?model=b")

    assert "two targets are called 'gpu-7-8000'" in said


def test_a_query_is_asked_for_and_not_shown() -> None:
    target = EngineTarget(url="http://gpu-7/metrics?key=s3cret")

    assert target.address.endswith("?key=s3cret")
    assert target.shown == "http://gpu-7/metrics"


# --- the bucket fleet-config ---------------------------------------------------------------------


def test_the_bucket_gives_other_targets() -> None:
    value = b'{"targets": ["http://a:1", {"url": "http://b:2", "pool": "chat"}]}'

    targets = updated_targets(EnginesSettings(targets=("http://c:3",)), value)

    assert targets == (LocalTarget(url="http://a:1"), LocalTarget(url="http://b:2", pool="chat"))


def test_a_token_goes_only_where_the_agents_own_settings_send_it() -> None:
    local = LocalTarget(url="https://gpu-7:8443", bearer_file="/run/t", ca_file="/run/ca")
    urls = (
        "https://gpu-7:8443/other",
        "https://gpu-7:8444",
        "http://gpu-7:8443",
        "https://evil:8443",
    )
    named = [{"url": url, "name": f"e{index}"} for index, url in enumerate(urls)]
    value = msgspec.json.encode({"targets": named})

    targets = updated_targets(EnginesSettings(targets=(local,)), value)

    assert [(t.bearer_file, t.ca_file) for t in targets] == [
        ("/run/t", "/run/ca"), ("", ""), ("", ""), ("", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"{", "truncated", id="cut-off"),
        pytest.param(b"\xff", "JSON", id="not-utf-8"),
        pytest.param(b'{"targets": [' + b"[" * 100_000, "array", id="nested"),
        pytest.param(b"{}", "targets", id="no-targets"),
        pytest.param(b'{"targets": "http://a"}', "array", id="no-list"),
        pytest.param(b'{"targets": [], "interval_seconds": 1}', "interval_seconds", id="more"),
        pytest.param(b'{"targets": ["gpu-7"]}', "must look like", id="no-url"),
        pytest.param(b'{"targets": [{"url": "http://a", "bearer_file": "/etc/shadow"}]}',
                     "bearer_file", id="a-file-of-ours"),
        pytest.param(b'{"targets": ["http://a:1", "http://a:1/metrics"]}',
                     "two targets", id="twice"),
        pytest.param(msgspec.json.encode({"targets": [f"http://a:{i}" for i in range(1, 66)]}),
                     "length", id="too-many"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_and_says_why(value: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        updated_targets(EnginesSettings(), value)


def test_settings_show_where_a_token_is_and_never_the_token(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    options: dict[str, tuple[str, Any]] = {
        "agent.engines.targets": (
            "file", [{"url": "https://g", "bearer_file": str(secret)}],
        ),
    }  # fmt: skip

    loaded = load(environ={"TOKEN": "s3cret"}, options=options)

    assert str(secret) in repr(loaded.settings)
    assert "s3cret" not in repr(loaded.settings)
