"""The commands that ask a running installation, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import EVENTS, endpoints
from schemas.lifecycle import ROLES
from tests.support.program import ROOT, Up, environment, resource_agent, running_up
from tests.support.server import NatsServer
from tests.support.small_disk import small_disk


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(
        tmp_path_factory.mktemp("up"), "--node", "n1", agent__interval_seconds=0.5
    ) as running:
        yield running


def document(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The one JSON document on stdout."""
    assert b"Traceback" not in done.stderr
    return json.loads(done.stdout)


def first_line(up: Up, *arguments: str) -> bytes:
    """The first line that a command prints, which is then stopped."""
    with subprocess.Popen(
        [sys.executable, "-m", "agent", *arguments, "--state-dir", str(up.state_dir)],
        cwd=ROOT,
        env=up.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()  # not Ctrl-C: what a shell runs in the background does not hear it
    return line


def test_a_value_is_put_got_and_deleted(up: Up) -> None:
    put = up.command("put", "greeting", "hello fleet")
    got = up.command("get", "greeting")
    deleted = up.command("delete", "greeting", "--json")
    missed = up.command("get", "greeting")

    assert put.returncode == 0
    assert b"stored 11 bytes as 'greeting'" in put.stderr
    assert f"the running `up` on {up.state_dir}".encode() in put.stderr
    assert (got.returncode, got.stdout) == (0, b"hello fleet")
    assert document(deleted)["existed"] is True
    assert (missed.returncode, missed.stdout) == (1, b"")
    assert b"no value for 'greeting' in namespace default" in missed.stderr


def test_the_cache_is_configured_and_shown(up: Up) -> None:
    configured = up.command("cache configure", "max_size_mb=64.5", "min_prefix_length=5")
    shown = up.command("cache config", "--json")
    status = up.command("cache status")
    optimized = up.command("cache optimize", "--json")
    refused = up.command("cache configure", "max_size_mb=-1")
    malformed = up.command("cache configure", "max_size_mb")
    unasked = up.command("cache clear", stdin=b"")
    cleared = up.command("cache clear", "--yes", "--json")

    assert b"64.5" in configured.stdout
    assert (document(shown)["max_size_mb"], document(shown)["min_prefix_length"]) == (64.5, 5)
    assert b"hit_rate_percent" in status.stdout
    assert document(optimized)["success"] is True
    assert (refused.returncode, b"max_size_mb = -1 is refused" in refused.stderr) == (1, True)
    assert (malformed.returncode, b"is not FIELD=VALUE" in malformed.stderr) == (2, True)
    assert unasked.returncode == 1
    assert "generation" in document(cleared)


def test_a_rule_is_set_and_its_alerts_are_told_and_listed(up: Up) -> None:
    made = up.command(
        *("alerts set-rule", "any_memory", "metric=host.memory.utilization_ratio", "warning=0"),
        *("summary=42", "--json"),
    )
    seen = first_line(up, "alerts", "--watch", "--history", "--rule", "any_memory")
    while not (shown := up.command("alerts", "--rule", "any_memory")).stdout.startswith(
        b"warning "
    ):
        assert up.process.poll() is None
    past = up.command("alerts", "--history", "--since", "1h", "--rule", "any_memory", "--json")

    assert document(made)["rules"][0]["rule"]["warning"] == 0.0
    assert b" raised   warning  42: n1: " in seen
    assert b"42: n1: " in shown.stdout
    assert [row["transition"] for row in document(past)["rows"]] == ["raised"]


def test_top_prints_one_picture_for_people_and_for_programs(up: Up) -> None:
    shown = up.command("top", "--once")
    data = document(up.command("top", "--json", "--node", "n1"))
    nobody = document(up.command("top", "--json", "--node", "nobody"))

    assert b"resource-agent" in shown.stdout.splitlines()[0]
    assert b"NODE " in shown.stdout
    assert [row["node"] for row in data["fleet"]["nodes"]] == ["n1"]
    assert data["fleet"]["nodes"][0]["is_stale"] is False
    assert nobody["fleet"]["nodes"] == []


def test_a_silence_is_added_listed_and_taken_back(up: Up) -> None:
    wanted = ("--rule", "x_*", "--future", "--for", "5m", "--author", "ann", "--json")
    added = up.command("silence add", *wanted)
    listed = up.command("silence ls")
    taken = up.command("silence rm", document(added)["silence"]["silence_id"])

    assert document(added)["state"] == "active"
    assert all(text in listed.stdout for text in (b"x_*", b"ann", b"active"))
    assert b"took back" in taken.stdout


def test_alerts_of_a_choice_give_no_all_clear_for_others(up: Up) -> None:
    chosen = up.command("alerts", "--rule", "zzz")

    assert b"no such alert is open" in chosen.stdout


def test_a_rule_is_removed_and_given_back(up: Up) -> None:
    removed = up.command("alerts rm-rule", "disk_busy")
    listed = up.command("alerts rules")
    reset = up.command("alerts reset-rule", "disk_busy", "--json")

    assert b"removed rule disk_busy" in removed.stdout
    assert "≥ base - 5 " in listed.stdout.decode()
    assert "≤ 0.05 base " in listed.stdout.decode()
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith(b"disk_busy")]
    assert b"removed" in line
    assert document(reset)["rules"][0]["state"] == "in_force"


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("alerts set-rule", "r", "metric=host.nothing", "warning=1"), "there is no 'nothing'", 1),
        (("alerts set-rule", "r", "colour=red"), "'colour=red' is not FIELD=VALUE; fields: ", 2),
        (("alerts", "--history", "--since", "long"), "write a time like 90m", 2),
        (("silence add", "--rule", "x"), "say how long", 2),
        (("silence rm", "nothing"), "there is no silence 'nothing'", 1),
        (
            ("silence add", "--for", "5m", "--rule", "disk_fulls*"),
            "no alert rule matches 'disk_fulls*'; near it: disk_full",
            1,
        ),
        (("top", "--sort", "beauty"), "--sort beauty: choose age_seconds, busy_ratio", 2),
        (("top", "--section", "x"), "--section x: choose alerts, pools", 2),
        (
            ("alerts rm-rule", "disk_ful"),
            "there is no alert rule 'disk_ful'; near it: disk_full",
            1,
        ),
    ],
    ids=["path", "field", "since", "how-long", "silence", "stray", "sort", "section", "rule"],
)
def test_what_alerts_refuse_is_one_clear_line(
    up: Up, arguments: tuple[str, ...], text: str, code: int
) -> None:
    done = up.command(*arguments)

    *_, error = done.stderr.decode().splitlines()
    assert (done.returncode, text in error) == (code, True), error


def test_bytes_come_through_standard_input_unchanged(up: Up) -> None:
    value = bytes(range(256))

    up.command("put", "bytes", "-", stdin=value)
    got = up.command("get", "bytes", "--no-restore")

    assert got.stdout == value


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("put", "k", "v" * (65 * 2**20)), "is above the limit of 67108864 bytes", 1),
        (("put", "k", "v", "--ttl", "inf"), "it must be finite", 2),
        (("get", ""), "the key is empty", 2),
        (("get", "k", "--namespace", "nobodys"), "nobody serves fleet.v1.cache.nobodys.get", 1),
        (("watch", "not a subject"), "'not a subject' is not a subject", 2),
        (("watch", "a.>.b"), "'a.>.b' is not a subject", 2),
    ],
    ids=["large-value", "no-end", "no-key", "namespace", "blanks", "wildcard"],
)
def test_what_cannot_be_is_one_clear_line(
    up: Up, arguments: tuple[str, ...], text: str, code: int
) -> None:
    name, key, *rest = arguments
    if name == "put":  # too long for a command line
        done = up.command("put", key, "-", *rest[1:], stdin=rest[0].encode())
    else:
        done = up.command(*arguments)

    *_, error = done.stderr.decode().splitlines()
    assert done.returncode == code
    assert error.startswith("error: ")
    assert text in error
    assert b"Traceback" not in done.stderr


def test_watch_prints_what_passes_and_stops_after_count(up: Up) -> None:
    lines = up.command("watch", "metrics.host.>", "--count", 2).stdout.decode().splitlines()
    rows = up.command("watch", "fleet.v1.metrics.host.n1", "--count", 1, "--json")

    assert len(lines) == 2
    assert all(" metrics.host.n1 {" in line for line in lines)
    assert document(rows)["subject"] == "metrics.host.n1"
    assert document(rows)["payload"]["node"] == "n1"


def test_watch_stops_after_a_time(up: Up) -> None:
    done = up.command("watch", "alert.>", "--for", 0.2)

    assert (done.returncode, done.stdout) == (0, b"")


def test_health_says_that_all_is_ready(up: Up) -> None:
    shown = up.command("health")
    whole = up.command("health", "--json")
    one = up.command("health", "--role", "cache")

    text = shown.stdout.decode()
    assert (shown.returncode, whole.returncode, one.returncode) == (0, 0, 0), text
    assert text.splitlines()[0].endswith(", ready")
    assert all(f"{role} n1" in text for role in ROLES)
    assert document(whole)["ready"] is True
    assert whole.stderr == b""
    assert [role for role in ROLES if f"{role} n1" in one.stdout.decode()] == ["cache"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(("--nats-url", f"nats://{'long-' * 40}name.invalid:1"), 1, id="failure"),
        pytest.param(("--no-such-" + "option" * 30,), 2, id="wrong usage"),
        pytest.param(("--role", "cash" * 60), 2, id="wrong value"),
    ],
)
def test_an_error_that_goes_into_a_file_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    env = {**environment(), "COLUMNS": "60"}

    done = resource_agent("health", "--state-dir", tmp_path, *arguments, env=env)

    (said,) = [line for line in done.stderr.decode().splitlines() if line.lower().startswith("err")]
    assert done.returncode == code
    assert len(said) > 160
    assert done.stderr.decode().rstrip().endswith(said)


@pytest.mark.parametrize("command", ["archive status", "health", "watch", "keys", "top --once"])
def test_a_state_folder_from_which_nothing_runs_is_told(tmp_path: Path, command: str) -> None:
    name, *rest = command.split()

    done = resource_agent(name, *rest, "--state-dir", tmp_path)

    said = done.stderr.decode()
    assert done.returncode == 1
    assert f"nothing runs from state folder {tmp_path}: start `resource-agent up --st" in said
    assert "4222" not in said


def test_doctor_says_that_nothing_runs_from_a_state_folder(tmp_path: Path) -> None:
    done = resource_agent("doctor", "--state-dir", tmp_path)

    assert done.returncode == 1
    assert f"FAIL bus: nothing runs from state folder {tmp_path}" in done.stdout.decode()


def test_health_of_nothing_is_not_ready(tmp_path: Path) -> None:
    done = resource_agent("health", "--state-dir", tmp_path, "--nats-url", "nats://127.0.0.1:1")

    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1].startswith("error: no NATS server answers")


def test_doctor_finds_nothing_wrong(up: Up) -> None:
    done = up.command("doctor", "--json")
    shown = up.command("doctor")

    checks = {check["name"]: check for check in document(done)}
    assert [check for check in checks.values() if not check["ok"]] == []
    assert done.returncode == 0
    assert list(checks) == [
        "state folder", "nats-server", "archive store", "bus", "streams", "metrics history",
        "archive owner", "services", "same host",
    ]  # fmt: skip
    assert f"the running `up` on {up.state_dir}" in checks["bus"]["text"]
    assert "metrics " in checks["streams"]["text"]
    assert " of 1.0 GiB" in shown.stdout.decode() or " MiB" in shown.stdout.decode()


def test_doctor_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=1) as disk:
        disk.make_read_only()
        done = resource_agent("doctor", "--state-dir", disk.path)

    assert done.returncode == 1
    assert f"FAIL state folder: {disk.path}: this user cannot write" in done.stdout.decode()
    assert f"FAIL archive store: folder {disk.path}/archive cannot be made" in done.stdout.decode()


def test_doctor_names_a_server_that_keeps_nothing(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "server", jetstream=False)
    server.start()
    try:
        done = resource_agent("doctor", "--nats-url", server.url, "--state-dir", tmp_path / "state")
    finally:
        server.stop()

    assert done.returncode == 1
    assert "FAIL streams: fleet.v1: JetStream does not answer" in done.stdout.decode()


def test_doctor_says_what_to_do_where_nothing_runs(tmp_path: Path) -> None:
    done = resource_agent(
        "doctor", "--json", "--state-dir", tmp_path, "--nats-url", "nats://127.0.0.1:1"
    )

    failed = [check for check in document(done) if not check["ok"]]
    assert done.returncode == 1
    assert [check["name"] for check in failed] == ["bus"]
    assert "resource-agent up" in failed[0]["remedy"]


def test_settings_say_where_each_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[cache]\nmax_memory_mb = 7\n")

    done = resource_agent(
        *("settings", "--json", "--config", file, "--state-dir", tmp_path),
        env=environment(agent__interval_seconds=2),
    )
    shown = resource_agent("settings", "--config", file)

    options = {option["name"]: (option["value"], option["source"]) for option in document(done)}
    assert options["cache.max_memory_mb"] == (7, f"file {file}")
    assert options["agent.interval_seconds"] == (
        2.0,
        "environment RESOURCE_AGENT_AGENT__INTERVAL_SECONDS",
    )
    assert options["state_dir"] == (str(tmp_path), "option --state-dir")
    assert options["root"] == ("fleet.v1", "default")
    assert f"cache.max_memory_mb = 7  (file {file})" in shown.stdout.decode()


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[cache]\nmax_memory_mb = 0\n")

    done = resource_agent("settings", "--config", file)

    assert done.returncode == 2
    assert f"setting cache.max_memory_mb = 0 (file {file})" in done.stderr.decode()


def test_subjects_list_every_event_and_endpoint() -> None:
    rows = document(resource_agent("subjects", "--json"))
    shown = resource_agent("subjects").stdout.decode()

    names = {row["subject"] for row in rows}
    assert {kind.SUBJECT for kind in EVENTS} <= names
    assert {spec.subject for spec in endpoints()} <= names
    assert {"evicted.{namespace}", "dead.{stream}.{consumer}"} <= names
    assert all(name in shown for name in names)


def test_the_asyncapi_document_is_whole() -> None:
    described = document(resource_agent("subjects", "--asyncapi"))

    text = json.dumps(described)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}
    assert described["asyncapi"] == "3.0.0"
    assert references
    for reference in references:
        place = described
        for key in reference.split("/"):
            assert key in place, reference
            place = place[key]


CTRL_C_DURING_IMPORT = """
import sys

class Finder:
    def find_spec(self, name, *_):
        if name == "agent.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from agent.__main__ import main
main()
"""


def test_ctrl_c_while_starting_leaves_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_DURING_IMPORT],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )

    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize("command", ["settings", "doctor"], ids=["much", "little"])
def test_a_reader_that_goes_away_leaves_no_noise(command: str) -> None:
    env = environment()
    env.pop("PYTHONUNBUFFERED", None)
    with subprocess.Popen(
        [sys.executable, "-m", "agent", command, "--json"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (1, b"")
