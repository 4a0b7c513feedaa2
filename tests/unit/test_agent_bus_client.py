"""Headers as the client reads them, line by line like nats-py."""

import pytest
from nats.aio.client import Client

from agent.bus.client import BusClient


@pytest.mark.parametrize(
    "raw",
    [
        b"A: b\r\nFleet-Evicted: %7B%22a%22\r\n\r\n",
        b"A:b\r\n B :\tc \r\n\r\n",
        b"no colon\r\nA: b: c\r\n\r\n",
        b"two words: x\r\n\xc3\xa4: x\r\n\xff: x\r\nA: \xff\xc3\xa4\r\n\r\n",
        b"A: 1\r\nA: 2\r\n\r\n",
        b": nameless\r\n\r\n",
        b"",
    ],
)
def test_headers_are_read_as_nats_py_reads_them(raw: bytes) -> None:
    assert BusClient._parse_header_lines(raw) == Client._parse_header_lines(raw)
