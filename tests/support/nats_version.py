"""What the nats-server of the tests can do."""

from agent.nats_rights import DENIES_RELIABLY_SINCE
from agent.nats_server import find_server, server_version


def guests_hear_the_whole_root() -> bool:
    binary = find_server()
    assert binary is not None
    return server_version(binary) >= DENIES_RELIABLY_SINCE
