"""The `simkit` command, also as `python -m simkit`: interrupted before its verbs are imported, it says so in a line."""

import sys


def start() -> None:
    """Run a verb (`simkit.cli.main.entry`)."""
    try:
        from simkit.cli.main import entry
    except KeyboardInterrupt:
        sys.stderr.write("simkit: interrupted before anything was computed; nothing was written\n")
        sys.exit(130)
    entry()


if __name__ == "__main__":
    start()
