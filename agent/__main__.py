"""Entry point of `resource-agent` and of `python -m agent`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C at any moment, imports included, ends without a traceback."""
    try:
        from agent.cli.app import main as run_command  # noqa: PLC0415 - so that Ctrl-C finds the try

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
