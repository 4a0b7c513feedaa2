"""What the nats-server of the tests can do."""

from agent.nats_server.binary import find_server, server_version
from agent.nats_server.rights import DENIES_RELIABLY_SINCE


def guests_hear_the_whole_root() -> bool:
    binary = find_server()
    assert binary is not None
    return server_version(binary) >= DENIES_RELIABLY_SINCE
