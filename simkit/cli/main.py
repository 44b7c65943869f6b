"""The `simkit` command. Verbs import what they need when they run, so that `--help` answers at once."""

import os
import sys

import typer

from simkit import __version__
from simkit.cli.bench import bench
from simkit.cli.calibrate import app as calibrate
from simkit.cli.compare import compare
from simkit.cli.conform import conform
from simkit.cli.console import people
from simkit.cli.context import context
from simkit.cli.known import devices, models
from simkit.cli.plan import plan
from simkit.cli.run import run
from simkit.cli.selftest import selftest
from simkit.cli.serve import serve
from simkit.cli.testbed import run_testbed
from simkit.cli.validate import validate
from simkit.cli.workload import app as workload
from simkit.errors import InputError, PartialResultError, TargetNotMetError

DONE, BAD_INPUT, NOT_MET, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    help="Simulate LLM serving: what load a GPU holds, before you rent it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(plan)
app.command()(context)
app.command()(compare)
app.command()(serve)
app.command("testbed")(run_testbed)
app.command()(conform)
app.command()(validate)
app.command()(selftest)
app.command()(bench)
app.command()(models)
app.command()(devices)
app.add_typer(calibrate, name="calibrate")
app.add_typer(workload, name="workload")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Simulate LLM serving: what load a GPU holds, before you rent it."""


def entry() -> None:
    """Run a verb; bad input ends in one line and exit code 2, an unmet target in 3, Ctrl-C in 130."""
    try:
        app()
    except InputError as error:
        people.print(f"simkit: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(BAD_INPUT)
    except TargetNotMetError as error:
        people.print(f"simkit: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(NOT_MET)
    except PartialResultError as error:
        people.print(f"simkit: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # the reader of our output has gone: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
