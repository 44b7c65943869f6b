"""The `simkit` command, also as `python -m simkit`: interrupted before its verbs are imported, it says so in a line."""

import gc
import sys

NEW_OBJECTS_TO_COLLECT = 200_000  # Python's own, some hundreds, cost a twentieth of a short command's time


def start() -> None:
    """Run a verb (`simkit.cli.main.entry`)."""
    gc.set_threshold(NEW_OBJECTS_TO_COLLECT)
    try:
        from simkit.cli.main import entry
    except KeyboardInterrupt:
        sys.stderr.write("simkit: interrupted before anything was computed; nothing was written\n")
        sys.exit(130)
    entry()


if __name__ == "__main__":
    start()
