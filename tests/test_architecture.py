"""The import arrows of the house, as a test."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "archive", "cache", "handlers", "schemas")
COMMON = {"msgspec", "structlog", "schemas"}
ALLOWED = {
    "schemas": {"msgspec", "schemas"},
    "handlers": COMMON | {"handlers"},
    "cache": COMMON | {"cache"},
    "archive": COMMON | {"archive"},
    "agent": COMMON | {"agent"},
}
EXTRA = {
    "schemas/digest.py": {"blake3"},
    "archive/codec.py": {"zstandard"},
    "archive/s3.py": {"aioboto3", "aiobotocore", "aiohttp", "botocore"},
    "archive/s3_config.py": {"aiobotocore"},
    "archive/s3_errors.py": {"botocore"},
    "archive/s3_signing.py": {"botocore"},
    "agent/assembly.py": {"handlers", "cache", "archive"},
    "agent/event_loop.py": {"uvloop"},
    "agent/groq_model.py": {"groq", "httpx"},
    "agent/settings.py": {
        "handlers.settings",
        "handlers.insights.settings",
        "cache.settings",
        "archive.settings",
    },
    "agent/bus/": {"nats"},
    "agent/collectors/engines/exposition.py": {"prometheus_client"},
    "agent/collectors/engines/fetch.py": {"aiohttp"},
    "agent/collectors/host.py": {"psutil"},
    "agent/collectors/nvml/binding.py": {"pynvml"},
    "agent/backtest.py": {"handlers"},
    "agent/cli": {"typer", "rich"},
    "agent/cli/backtest.py": {"handlers"},
    "agent/demo/run.py": {"rich"},
    "agent/executors/kubernetes.py": {"aiohttp"},
    "agent/views/": {"rich"},
    "agent/views/backtest_view.py": {"handlers"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def is_allowed(module: str, allowed: set[str]) -> bool:
    top = module.split(".", 1)[0]
    return top in sys.stdlib_module_names or top in allowed or module in allowed


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        extra = set().union(*(v for k, v in EXTRA.items() if name.startswith(k)))
        wrong = [m for m in imports(path) if not is_allowed(m, ALLOWED[package] | extra)]
        assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_the_one_of_this_checkout(package: str) -> None:
    module = __import__(package)

    assert module.__file__ is not None
    assert Path(module.__file__).resolve().is_relative_to(ROOT)


def test_no_import_only_for_type_checkers() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]

    assert not [path for path in files if "TYPE_CHECKING" in path.read_text()]
