"""Where settings come from, which source wins, and what is said about one that cannot be used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.settings import PREFIX, Loaded, Settings, SettingsError, describe, load
from schemas.lifecycle import ROLES

INTERVAL = "agent.interval_seconds"
INTERVAL_VARIABLE = "RESOURCE_AGENT_AGENT__INTERVAL_SECONDS"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("[agent]\ninterval_seconds = 2.0\nprocess_limit = 3\n")
    return path


def refusal(
    environ: dict[str, str] | None = None,
    config: Path | None = None,
    options: dict[str, tuple[str, Any]] | None = None,
) -> str:
    with pytest.raises(SettingsError) as refused:
        load(environ=environ or {}, config=config, options=options)
    return str(refused.value)


# --- sources -------------------------------------------------------------------------------------


def test_without_any_source_everything_is_a_default() -> None:
    loaded = load(environ={"PATH": "/bin", "NATS_URL": "nats://x"})

    assert loaded == Loaded(settings=Settings(), sources={})


def test_each_source_beats_the_one_before(file: Path) -> None:
    environ = {INTERVAL_VARIABLE: "3"}
    options = {INTERVAL: ("--interval", 4.0)}

    by_file = load(environ={}, config=file)
    by_environment = load(environ=environ, config=file)
    by_option = load(environ=environ, config=file, options=options)

    assert by_file.settings.agent.interval_seconds == 2.0
    assert by_environment.settings.agent.interval_seconds == 3.0
    assert by_option.settings.agent.interval_seconds == 4.0
    assert by_file.sources[INTERVAL] == f"file {file}"
    assert by_environment.sources[INTERVAL] == f"environment {INTERVAL_VARIABLE}"
    assert by_option.sources[INTERVAL] == "option --interval"
    # What only the file says stays the file's.
    assert by_option.settings.agent.process_limit == 3
    assert by_option.sources["agent.process_limit"] == f"file {file}"


def test_names_of_labels_may_have_dots(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    path.write_text('[labels]\ncapacity = "spot"\n"topology.kubernetes.io/zone" = "eu-1a"\n')

    by_file = load(environ={}, config=path).settings
    by_environment = load(environ={"RESOURCE_AGENT_LABELS": '{"a.b/c": "d"}'}).settings
    one_more = load(environ={"RESOURCE_AGENT_LABELS__TIER": "1"}, config=path).settings

    assert by_file.labels == {"capacity": "spot", "topology.kubernetes.io/zone": "eu-1a"}
    assert by_environment.labels == {"a.b/c": "d"}
    assert one_more.labels == by_file.labels | {"tier": "1"}


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param('{"a b": "c"}', id="name"),
        pytest.param('{"a": "c d"}', id="value"),
        pytest.param('{"a": 1}', id="number"),
        pytest.param("capacity=spot", id="no table"),
    ],
)
def test_labels_that_kubernetes_would_refuse_are_refused(labels: str) -> None:
    assert "setting labels" in refusal({"RESOURCE_AGENT_LABELS": labels})


def test_the_environment_may_name_the_file_and_an_argument_beats_it(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text('node = "other"')
    environ = {"RESOURCE_AGENT_CONFIG": str(file)}

    named = load(environ=environ)
    given = load(environ=environ, config=other)

    assert named.settings.agent.process_limit == 3
    assert given.settings.agent.process_limit == Settings().agent.process_limit
    assert given.settings.node == "other"


def test_one_half_of_a_pair_can_be_set_alone() -> None:
    loaded = load(environ={"RESOURCE_AGENT_HANDLERS__UTILIZATION__CPU__WARNING_RATIO": "0.5"})

    cpu = loaded.settings.handlers.utilization.cpu
    assert (cpu.warning_ratio, cpu.critical_ratio) == (
        0.5, Settings().handlers.utilization.cpu.critical_ratio,
    )  # fmt: skip


def test_two_sources_may_fill_one_table(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[cache.ttl]\nmin_seconds = 60.0\n")

    loaded = load(environ={"RESOURCE_AGENT_CACHE__TTL__MAX_SECONDS": "90"}, config=path)

    assert (loaded.settings.cache.ttl.min_seconds, loaded.settings.cache.ttl.max_seconds) == (
        60.0, 90.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("server.sync_always", "true", True, id="truth"),
        pytest.param("streams.budget_bytes", "67108864", 67108864, id="number-or-null"),
        pytest.param("streams.budget_bytes", "null", None, id="null"),
        pytest.param("node", "123", "123", id="text-of-digits"),
        pytest.param("node", "[x]", "[x]", id="text-in-brackets"),
        pytest.param("node", "", "", id="empty-text"),
        pytest.param("log.level", "debug", "debug", id="choice"),
        pytest.param("cache.namespaces", "a", ("a",), id="list-of-one"),
        pytest.param("cache.namespaces", "a, b", ("a", "b"), id="list-by-commas"),
        pytest.param("cache.namespaces", '["a", "b"]', ("a", "b"), id="list-as-json"),
        pytest.param("health.expected_roles", "cache,agent", ("cache", "agent"), id="roles"),
    ],
)
def test_the_environment_says_every_type_in_plain_text(name: str, text: str, value: object) -> None:
    variable = PREFIX + name.upper().replace(".", "__")

    loaded = load(environ={variable: text})

    (option,) = [option for option in describe(loaded) if option.name == name]
    assert option.value == msgspec.to_builtins(value)
    assert option.source == f"environment {variable}"


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        pytest.param("AGENT__INTERVAL_SECONDS", "0", ["'0'", ">= 0.1"], id="too-small"),
        pytest.param("AGENT__INTERVAL_SECONDS", "nan", ["'nan'", ">= 0.1"], id="not-a-number"),
        pytest.param(
            "HANDLERS__SCALING__USD_PER_REPLICA_HOUR", "inf", ["'inf'", "finite"], id="no-end"
        ),
        pytest.param(
            "HANDLERS__SCALING__PROMPT_TARGET_TOKENS_PER_SECOND",
            "1e-320",
            ["'1e-320'", ">= 0.001"],
            id="next-to-nothing",
        ),
        pytest.param("AGENT__INTERVAL_SECONDS", "soon", ["'soon'", "float"], id="not-numeric"),
        pytest.param("AGENT__INTERVAL_SECONDS", "", ["''", "float"], id="empty"),
        pytest.param("LOG__LEVEL", "loud", ["'loud'", "Invalid"], id="no-such-choice"),
        pytest.param("ROOT", "a b", ["'a b'", "matching"], id="not-a-subject"),
        pytest.param("STREAMS__BUDGET_BYTES", "5", ["'5'", ">= 67108864"], id="no-room"),
        pytest.param(
            "HEALTH__EXPECTED_ROLES", "cache,agnt", ["['cache', 'agnt']", "'agnt'"], id="no-role"
        ),
        pytest.param("CACHE__NAMESPACES", '["a"', ["""'["a"'""", "array"], id="broken-list"),
        pytest.param("SERVER__SYNC_ALWAYS", "maybe", ["'maybe'", "bool"], id="not-a-truth"),
        pytest.param("AGENT", "1", ["'1'", "object"], id="value-for-a-table"),
        pytest.param("NODE__NAME", "x", ["'x'", "not a table"], id="table-for-a-value"),
    ],
)
def test_a_refused_variable_is_named_with_its_value_and_the_rule(
    variable: str, text: str, words: list[str]
) -> None:
    told = refusal({PREFIX + variable: text})

    assert told.startswith(f"setting {variable.lower().replace('__', '.')} = ")
    assert f"(environment {PREFIX}{variable})" in told
    assert all(word in told for word in words)


@pytest.mark.parametrize(
    "variable", ["AGENT__INTERVALSECONDS", "NOPE", "CACHE__TTL__ALPHA__X__Y", "X__Y", ""]
)
def test_a_variable_that_means_nothing_is_refused_by_name(variable: str) -> None:
    told = refusal({PREFIX + variable: "1"})

    assert f"environment {PREFIX}{variable}" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("[agent]\ninterval_seconds = 'x'", [f"{INTERVAL} = 'x'", "float"], id="type"),
        pytest.param("node = 5", ["node = 5", "str"], id="number-for-text"),
        pytest.param(
            "[handlers.scaling]\nttft_target_seconds = inf",
            ["handlers.scaling.ttft_target_seconds = inf", "finite"],
            id="no-end",
        ),
        pytest.param(
            "[cache]\nmax_memory = 1", ["cache.max_memory = 1", "no such setting"], id="unknown"
        ),
        pytest.param("[cash]\nx = 1", ["cash", "no such setting"], id="unknown-table"),
        pytest.param(
            "[cache.ttl]\nmin_seconds = 9.0\nmax_seconds = 8.0",
            ["cache.ttl", "min_seconds (9) must not be above max_seconds (8)"],
            id="crossed",
        ),
        pytest.param(
            "[archive]\nretry_max_seconds = 0.5",
            ["archive", "retry_max_seconds must not be shorter"],
            id="crossed-with-a-default",
        ),
        pytest.param("[agent\n", ["is not TOML", "line 1"], id="not-toml"),
    ],
)
def test_a_refused_file_is_named_with_key_value_and_rule(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)

    told = refusal(config=path)

    assert f"file {path}" in told
    assert all(word in told for word in words)


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'node = "\xff"')

    assert f"settings file {path} is not TOML" in refusal(config=path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"

    for told in (
        refusal(config=missing),
        refusal({"RESOURCE_AGENT_CONFIG": str(missing)}),
        refusal(config=tmp_path),
    ):
        assert "cannot read settings file" in told
    assert str(missing) in refusal(config=missing)


def test_a_refused_option_is_named_as_it_was_typed(file: Path) -> None:
    told = refusal({}, file, {INTERVAL: ("--interval", 500)})

    assert f"setting {INTERVAL} = 500 (option --interval)" in told
    assert "<= 300" in told


@pytest.mark.parametrize(
    ("wrong", "beside"),
    [
        ("ARCHIVE__STORE=s4://b", "ARCHIVE__S3__ENDPOINT_URL=http://s3:9000"),
        ("ARCHIVE__S3__ENDPOINT_URL=s3:9000", "ARCHIVE__S3__ADDRESSING=path"),
        ("ARCHIVE__RETRY_MAX_SECONDS=0.5", "ARCHIVE__FOLDER=/a"),
        ("ARCHIVE__RETRY_SECONDS=60", "ARCHIVE__FOLDER=/a"),
    ],
    ids=["store", "endpoint", "longest-retry", "retry"],
)
def test_a_rule_over_a_table_blames_the_setting_it_is_about(wrong: str, beside: str) -> None:
    environ = dict(f"{PREFIX}{pair}".split("=") for pair in (wrong, beside))

    told = refusal(environ)

    assert f"(environment {PREFIX}{wrong.split('=', maxsplit=1)[0]})" in told


def test_a_value_where_a_table_belongs_is_named_with_both_sources(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("agent = 5")

    told = refusal({INTERVAL_VARIABLE: "1"}, path)

    assert f"setting {INTERVAL} = '1' (environment {INTERVAL_VARIABLE})" in told
    assert f"agent is not a table, but 5 (file {path})" in told


def test_every_number_is_refused_beyond_its_bounds_by_name() -> None:
    """Whatever the setting: `-1e300` is below every range, and the text says which one it was."""
    told = {}
    for option in describe(Loaded(settings=Settings(), sources={})):
        if option.type in ("int", "float"):
            told[option.name] = refusal({option.variable: "-1e300"})

    assert len(told) > 50
    for name, text in told.items():
        assert text.startswith(f"setting {name} = '-1e300' (environment {PREFIX}")


# --- the list of all -----------------------------------------------------------------------------


def leaves(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, msgspec.Struct):
            yield from leaves(type(field.default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_the_list_holds_every_setting_with_a_description_and_a_default() -> None:
    options = describe(load(environ={}))

    assert [option.name for option in options] == list(leaves(Settings))
    assert len({option.variable for option in options}) == len(options)
    for option in options:
        assert option.description, option.name
        assert option.type, option.name
        assert option.value == option.default, option.name
        assert option.source == "default"


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("agent.interval_seconds", "at least 0.1, at most 300"),
        ("agent.gpu_timeout_seconds", "above 0, at most 60"),
        ("handlers.max_nodes", "at least 1"),
        ("root", ""),
    ],
)
def test_the_list_says_what_a_number_may_be(name: str, limits: str) -> None:
    options = {option.name: option for option in describe(load(environ={}))}

    assert options[name].limits == limits


def test_every_listed_variable_sets_what_it_says() -> None:
    """Each default, said by its variable, is taken and gives the default again."""
    for option in describe(load(environ={})):
        text = option.default if isinstance(option.default, str) else None
        text = msgspec.json.encode(option.default).decode() if text is None else text

        loaded = load(environ={option.variable: text})

        assert loaded.settings == Settings(), option.name
        assert loaded.sources == {option.name: f"environment {option.variable}"}


def test_the_list_shows_what_is_set_and_by_whom(file: Path) -> None:
    options = {option.name: option for option in describe(load(environ={}, config=file))}

    limit = options["agent.process_limit"]
    assert (limit.value, limit.default, limit.source) == (3, 10, f"file {file}")
    assert options["health.expected_roles"].default == ROLES


# --- what is derived -----------------------------------------------------------------------------


def test_names_become_subject_tokens_and_stay_readable_as_given() -> None:
    settings = Settings(node="gpu 17.example", pool="")

    assert settings.node_name() == "gpu 17.example"
    assert settings.node_token().startswith("gpu-17-example")
    assert settings.pool_token() is None
    assert Settings().node_name()


def test_the_state_folder_is_absolute_and_follows_xdg(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert Settings().state_folder() == tmp_path / "resource-agent"
    assert Settings(state_dir="here").state_folder() == tmp_path / "here"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param(
            {
                "RESOURCE_AGENT_CACHE__NAMESPACES": "default,chat",
                "RESOURCE_AGENT_CACHE__NAMESPACE__CHAT__MAX_MEMORY_MB": "8",
                "RESOURCE_AGENT_CACHE__NAMESPACE__CHAT__TTL__BASE_SECONDS": "60",
            },
            id="one by one",
        ),
        pytest.param(
            {
                "RESOURCE_AGENT_CACHE__NAMESPACES": "default,chat",
                "RESOURCE_AGENT_CACHE__NAMESPACE": '{"chat": {"max_memory_mb": 8, '
                '"ttl": {"base_seconds": 60}}}',
            },
            id="as JSON",
        ),
    ],
)
def test_a_namespace_gets_limits_of_its_own_from_the_environment(environ: dict[str, str]) -> None:
    settings = load(environ=environ).settings.cache

    assert settings.of("chat").max_memory_mb == 8
    assert settings.of("chat").ttl.base_seconds == 60
    assert settings.of("default") == settings


def test_a_wrong_limit_of_a_namespace_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[cache.namespace.default]\nmax_memory_mb = 0\n")

    text = refusal(config=config)

    assert "cache.namespace" in text
    assert "max_memory_mb" in text
    assert str(config) in text
