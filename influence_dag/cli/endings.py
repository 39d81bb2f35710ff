"""How a command ends: exit codes, and errors as sentences without a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from influence_dag.errors import InfluenceDagError
from influence_dag.study.users_code import ended

REFUSED = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT  # as shells have it

EXIT_CODES = f"""\b
Exit codes:
  0    done
  {REFUSED}    refused or failed: the last line on standard error says why
  {USAGE}    the command itself is not understood
  {INTERRUPTED}  interrupted (Ctrl-C, SIGTERM); run again, it goes on from there
"""


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """What the user can mend is told without a traceback; SIGTERM is told as Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except SystemExit as error:
        sys.exit(f"StudyError: {ended(error)}")
    except InfluenceDagError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:  # what the system says of where a person wants to read or write
        if error.errno == errno.EPIPE:  # `| head` has seen enough, which click ends quietly
            raise
        sys.exit(f"{type(error).__name__}: {_no_folder() or error}")
    except KeyboardInterrupt as interrupt:
        click.echo(str(interrupt) or "interrupted", err=True)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _no_folder() -> str:
    """What a system that finds no path at all means; empty where it means something else."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the folder in which this was called is gone; change to one that is there"
    return ""
