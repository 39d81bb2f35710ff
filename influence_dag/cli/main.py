"""The group of all commands."""

import atexit
import gc
import io
import os
import sys
from typing import Any

import click

from influence_dag import __version__
from influence_dag.cli import health, results, studies
from influence_dag.cli.endings import EXIT_CODES, errors_in_a_line

COMMANDS = [
    *(studies.init, studies.check, studies.materialize, studies.status),
    *(results.show, results.top, results.suspects, results.versions, results.diff),
    *(results.explore, results.export, results.report, studies.gc, health.doctor),
]


class _Commands(click.Group):
    """Commands in the order in which they are used; what they refuse is told in a line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_in_a_line():
            return super().invoke(ctx)


@click.group("influence-dag", cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="influence-dag")
def main() -> None:
    """Influence functions of PyTorch models as a persisted, labelled asset graph.

    FOLDER is a study's, with a defs.yaml; STORE is where its results are, or that folder. Whatever
    prints takes --json; piped, nothing has colours or bars.
    """
    _print_anywhere()
    _collect_seldom()


def _print_anywhere() -> None:
    """What an encoding has no sign for is told by its number; a closed stream swallows all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _collect_seldom() -> None:
    """Look for garbage seldom, and not at all at the end: what is imported stays until then.

    A command that imports xarray and Dagster would spend a quarter of its time on that.
    """
    gc.set_threshold(50_000, 20, 10)
    atexit.register(gc.freeze)


for command in COMMANDS:
    command.epilog = EXIT_CODES
    main.add_command(command)
