"""Entry point of `python -m agent.nats_server`: prints where the server is, found or fetched."""

import sys

from agent.nats_server.binary import main

if __name__ == "__main__":
    sys.exit(main())
