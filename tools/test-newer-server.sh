#!/bin/sh
# The suite once more against a second nats-server: NATS_SERVER_SECOND=/path/to/nats-server.
set -eu
BIN=$1
if [ -z "${NATS_SERVER_SECOND:-}" ]; then
    echo "Set NATS_SERVER_SECOND=/path/to/another/nats-server to run the suite against it." >&2
    exit 0
fi
echo "The suite with $("$NATS_SERVER_SECOND" --version)" >&2
NATS_SERVER_BIN=$NATS_SERVER_SECOND "$BIN/pytest" -q -n 2 -m "not long and not gpu"
