"""`python -m agent`, from a clone's root."""

from agent.cli import main

main()
