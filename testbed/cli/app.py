"""The command `testbed`: its sub-commands, its errors, its exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from testbed.cli import benches, calibrate, catalogue, runs
from testbed.cli.failures import fail, interrupted
from testbed.cli.solve import solve

EXIT_CODES = {
    0: "done",
    1: "unexpected error",
    2: "configuration or usage: mend the file or the command line",
    3: "limit: an order was refused, nothing moved",
    4: "device, or a calibration that failed: mend the bench",
    5: "protocol: mend the code, or install one version everywhere",
    6: "replay departed from the record",
    130: "interrupted by Ctrl-C",
    141: "the reader of the output went away",
    143: "ended by SIGTERM",
}

app = typer.Typer(
    name="testbed",
    help="Federated LoRA fine-tuning through software radios, simulated or real.",
    epilog="[bold]Exit codes[/bold]\n\n"
    + "\n\n".join(f"{code:>3}  {words}" for code, words in EXIT_CODES.items())
    + "\n\nTESTBED_DEBUG=1 in the environment shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in (runs.run, runs.dry, runs.replay, runs.resume, runs.show, solve):
    app.command()(function)
for name, command in {**benches.COMMANDS, **catalogue.COMMANDS}.items():
    app.command(name)(command)
app.add_typer(calibrate.app, name="calibrate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: of the command line; `sys.argv[1:]` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        code = _invoke(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # what is left in the buffer must not raise again when Python flushes it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        return interrupted(error, as_json=as_json)
    except Exception as error:  # expected or not: a few lines instead of a traceback
        return fail(error, as_json=as_json)


def _invoke(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("testbed", list(words)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        if not words:
            return 2  # the help is on the screen
        raise error
    return 0
