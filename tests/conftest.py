"""Fixtures: a nats-server per test and a bus connected to it; an S3 server; NVML by a stub."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.bus import Bus, connect, ensure_streams
from benchmarks.moto import MotoServer
from tests.support.nvml import NvmlStub, OpenedGpus, build_stub, nvml_stub
from tests.support.server import NatsServer


@pytest.fixture(autouse=True)
def _no_foreign_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests never meet the user's NATS or state folder."""
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.setenv("RESOURCE_AGENT_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def nats_url(nats: NatsServer) -> str:
    return nats.url


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    """A connected bus on which all streams and buckets exist."""
    async with await connect(nats_url, name="test") as connected:
        await ensure_streams(connected)
        yield connected


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """An S3 server for the tests of one module."""
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(nvml_library: Path, tmp_path: Path) -> Iterator[NvmlStub]:
    """NVML with one busy GPU."""
    with nvml_stub(nvml_library, tmp_path / "values") as steered:
        yield steered


@pytest.fixture
def two_gpus(nvml_library: Path, tmp_path: Path) -> Iterator[NvmlStub]:
    with nvml_stub(nvml_library, tmp_path / "values", gpus=2) as steered:
        yield steered


@pytest.fixture
def gpus() -> Iterator[OpenedGpus]:
    """Not opened before the test has steered the stub: the first sample opens."""
    opened = OpenedGpus()
    yield opened
    opened.close()
