"""The files of the deployment: valid, hardened, without secrets, and what they name is there."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agent.bus.names import Names
from agent.nats_server.rights import deployed_rights
from agent.settings import Loaded, Settings, describe
from schemas.lifecycle import ROLES
from tests.support.deployment import compose, dockerfile, image_environment, make_secrets
from tests.support.program import ROOT

GPU_FILES = ("deploy/gpu.yml", "deploy/gpu-amd.yml")
COMPOSE_FILES = ("docker-compose.yml", *GPU_FILES)
SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_files_obey_the_compose_specification(name: str) -> None:
    # check-jsonschema carries the specification's schema: nothing is fetched.
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", name],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("name", GPU_FILES)
def test_a_gpu_file_adds_to_the_agent_and_takes_no_hardening_away(name: str) -> None:
    added = YAML(typ="safe").load(ROOT / name)["services"]

    assert set(added) == {"agent"}
    assert not {"user", "read_only", "cap_add", "security_opt", "privileged"} & set(added["agent"])


def test_the_deployment_page_names_every_file_with_the_variables_that_it_needs() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()

    for name in COMPOSE_FILES:
        wanted = set(re.findall(r"\$\{(\w+)", (ROOT / name).read_text()))
        assert name in page
        assert all(f"{variable}=" in page for variable in wanted)


def test_the_amd_file_builds_an_image_of_its_own_by_an_argument_that_is_there() -> None:
    agent = YAML(typ="safe").load(ROOT / "deploy" / "gpu-amd.yml")["services"]["agent"]

    arguments = {text.partition("=")[0] for word, text in dockerfile() if word == "ARG"}
    assert set(agent["build"]["args"]) <= arguments
    assert agent["image"] != OURS["agent"]["image"], "the others' image lacks the library"
    assert {"/dev/kfd", "/dev/dri"} == set(agent["devices"])


def test_each_role_is_one_container_of_one_image() -> None:
    assert {tuple(service["command"]): name for name, service in OURS.items()} == {
        ("run", role): role for role in ROLES
    }
    assert len({service["image"] for service in OURS.values()}) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_hardened_and_watched(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "privileged" not in service


def images() -> list[str]:
    bases = [text.split()[0] for word, text in dockerfile() if word == "FROM"]
    return [*bases, *(service["image"] for service in SERVICES.values())]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_each_image_is_pinned_to_a_release(image: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:\d+\.\d+(\.\d+)?(-[a-z]+)*", image)


def test_every_port_is_open_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", OURS)
def test_each_service_logs_in_as_itself_by_a_secret_file(name: str) -> None:
    environment = OURS[name]["environment"]

    assert re.fullmatch(rf"nats://{name}@[a-z0-9.]+:4222", environment["NATS_URL"])
    assert environment["RESOURCE_AGENT_NATS__PASSWORD_FILE"] == f"/run/secrets/nats_{name}"
    assert f"nats_{name}" in OURS[name]["secrets"]


def test_the_archive_logs_in_to_a_bucket_that_the_store_makes(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    (identity,) = json.loads((secrets / "s3.json").read_text())["identities"]
    keys = (secrets / "aws_credentials").read_text()

    environment = OURS["archive"]["environment"]
    bucket = environment["RESOURCE_AGENT_ARCHIVE__STORE"].removeprefix("s3://")
    assert f"-bucket={bucket}" in SERVICES["s3"]["command"]
    assert {action.partition(":")[2] for action in identity["actions"]} == {bucket}
    (credentials,) = identity["credentials"]
    assert f"aws_access_key_id = {credentials['accessKey']}\n" in keys
    assert f"aws_secret_access_key = {credentials['secretKey']}\n" in keys
    assert environment["AWS_SHARED_CREDENTIALS_FILE"] == "/run/secrets/aws_credentials"
    assert "-s3.config=/run/secrets/s3_identities" in SERVICES["s3"]["command"]


def test_only_the_archive_reaches_the_store() -> None:
    near = {name for name, service in SERVICES.items() if "storage" in service.get("networks", ())}

    assert near == {"s3", "archive"}
    assert SERVICES["s3"]["networks"] == ["storage"]
    assert compose()["networks"]["storage"]["internal"] is True
    assert "ports" not in SERVICES["s3"]


def test_the_agent_sees_the_host() -> None:
    agent = OURS["agent"]

    assert (agent["network_mode"], agent["pid"], agent["uts"]) == ("host", "host", "host")
    root = agent["environment"]["RESOURCE_AGENT_AGENT__HOST_ROOT"]
    assert f"/:{root}:ro,rslave" in agent["volumes"]


def test_every_secret_is_a_file_that_the_script_makes(tmp_path: Path) -> None:
    made = {f"./deploy/secrets/{path.name}" for path in make_secrets(tmp_path / "deploy").iterdir()}

    declared = compose()["secrets"]

    assert {secret["file"] for secret in declared.values()} <= made
    used = [s for service in SERVICES.values() for s in service.get("secrets", ())]
    assert {s if isinstance(s, str) else s["source"] for s in used} == set(declared)


def test_the_script_keeps_passwords_and_lets_only_its_user_in(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    first = {path.name: path.read_text() for path in secrets.iterdir()}
    (secrets / "cache").unlink()

    make_secrets(tmp_path)

    second = {path.name: path.read_text() for path in secrets.iterdir()}
    users = set(deployed_rights(Names()))
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert users <= set(first)
    assert len({first[user] for user in users}) == len(users)
    assert all(re.fullmatch("[0-9a-f]{32}", first[user]) for user in users)
    assert {name for name in users if first[name] != second[name]} == {"cache"}
    assert second["passwords.conf"].count(second["cache"]) == 1


def test_secrets_are_in_no_commit_and_no_image() -> None:
    listed = subprocess.run(
        ["git", "check-ignore", "deploy/secrets/agent"], cwd=ROOT, check=False, capture_output=True
    )

    assert listed.returncode == 0
    assert not is_sent("deploy/secrets/agent")


def test_the_environment_names_settings_that_exist() -> None:
    known = {option.variable for option in describe(Loaded(settings=Settings(), sources={}))}
    given = set(image_environment()).union(*(service["environment"] for service in OURS.values()))

    assert {name for name in given if name.startswith("RESOURCE_AGENT_")} <= known


def is_sent(path: str) -> bool:
    """Whether Docker may copy `path`: .dockerignore begins with `*`, then names what is let in."""
    everything, *allowed = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert everything == "*"
    return f"!{path.split('/', 1)[0]}" in allowed


def test_the_image_copies_files_that_are_there_and_not_ignored() -> None:
    copied = [
        source
        for word, text in dockerfile()
        if word == "COPY" and not text.startswith("--from")
        for source in text.split()[:-1]
    ]

    assert {"agent", "archive", "cache", "handlers", "schemas"} <= set(copied)
    assert all((ROOT / source).exists() and is_sent(source) for source in copied)


def test_the_image_runs_as_a_user_whose_state_folder_the_services_mount() -> None:
    last = [word for word, _ in dockerfile()][::-1].index("FROM")
    final = dict(dockerfile()[-last:])
    state = image_environment()["RESOURCE_AGENT_STATE_DIR"]

    assert final["USER"] == "resource-agent"
    assert final["ENTRYPOINT"] == '["resource-agent"]'
    assert all(f"{name}:{state}" in service["volumes"] for name, service in OURS.items())
    assert any(state in text for word, text in dockerfile() if word == "RUN")


@pytest.mark.long
def test_the_commands_that_build_the_image_run_and_give_a_working_program(tmp_path: Path) -> None:
    second_stage = [word for word, _ in dockerfile()].index("FROM", 1)
    here = tmp_path / "build"
    here.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "system"], check=True)

    for word, text in dockerfile()[1:second_stage]:
        if word == "COPY":
            *sources, target = text.split()
            subprocess.run(["cp", "-r", *(ROOT / s for s in sources), here / target], check=True)
        elif word == "RUN":
            moved = text.replace("/opt/", f"{tmp_path}/opt/")
            command = f'PATH="{tmp_path}/system/bin:$PATH"; {moved}'
            subprocess.run(["sh", "-ec", command], cwd=here, check=True)

    done = subprocess.run(
        [tmp_path / "opt/resource-agent/bin/resource-agent", "settings", "--json"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert b"nats.password_file" in done.stdout
