"""The command line: `influence-dag materialize assets/digits`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from influence_dag import __version__
from influence_dag.errors import InfluenceDagError
from influence_dag.study.users_code import ended

INTERRUPTED = 128 + signal.SIGINT  # the exit code, as shells have it


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Influence functions of PyTorch models as a persisted, labelled asset graph."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--train", required=True, help="Training rows: a file, a folder of pictures, module:callable."
)
@click.option("--test", required=True, help="Test rows, likewise.")
@click.option("--target", help="The column that the model predicts; not of folders of pictures.")
@click.option("--id", "id_", help="The column of row ids; default: one that is called so.")
@click.option("--model", help="module:callable that builds the torch module.")
@click.option("--checkpoint", help="A file with the model's fitted parameters.")
@click.option("--classes", help="The labels in the order of the model's outputs: benign,malignant.")
def init(folder: Path, id_: str | None, classes: str | None, **given: str | None) -> None:
    """Write a working study to FOLDER: defs.yaml, with every option, and model.py.

    Rows are tables, arrays, embeddings with their texts, or folders of pictures with a folder a
    class. Without --model it is a softmax or linear regression, whichever fits the target.
    """
    with _errors_in_a_line():
        from influence_dag.starting.first_look import Start
        from influence_dag.starting.folder import init as write

        order = tuple(map(str.strip, classes.split(","))) if classes else None
        click.echo(write(Start(folder, id=id_, classes=order, **given)))  # type: ignore[arg-type]


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def check(folder: Path) -> None:
    """What is wrong with the study in FOLDER, and what it will cost; nothing is computed.

    Reads the rows, builds the model and tries both on a few rows.
    """
    with _errors_in_a_line():
        from influence_dag.stages.foreseen import foresee

        click.echo(foresee(folder))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--show", is_flag=True, help="Print where things are and what they say.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def materialize(folder: Path, show: bool, quiet: bool) -> None:
    """Bring every artifact of the study in FOLDER (with a defs.yaml, or its results) up to date.

    The run is recorded for Dagster's UI in DAGSTER_HOME, or else in the project's .dagster once
    `make ui` has set it up; where there is neither, a line says so.
    Interrupted (Ctrl-C, SIGTERM) it ends with exit code 130; run again, it goes on from there.
    """
    with _errors_in_a_line():
        from influence_dag.running import materialize as run
        from influence_dag.study.history import why_unrecorded

        results = run(folder, progress=False if quiet else None)
        if results.project and (why := why_unrecorded(results.project)):
            click.echo(why, err=True)
    if show:
        from influence_dag.query.text import describe

        click.echo(describe(results))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """What a refresh of the study in FOLDER would compute, and why. Computes nothing."""
    from influence_dag.stages.status import status as find

    with _errors_in_a_line():
        click.echo(find(folder))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def show(store: Path) -> None:
    """Print what is stored in STORE (for example data/store/digits, or assets/digits)."""
    from influence_dag.query.results import open_study
    from influence_dag.query.text import describe

    with _errors_in_a_line():
        click.echo(describe(open_study(store)))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("artifact")
def versions(store: Path, artifact: str) -> None:
    """The kept versions of an ARTIFACT (for example direct/influences) in STORE."""
    from influence_dag.query.results import open_study
    from influence_dag.query.text import describe_versions

    with _errors_in_a_line():
        click.echo(describe_versions(open_study(store), artifact))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("artifact")
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
def diff(store: Path, artifact: str, before: int | None, after: int | None) -> None:
    """What changed in an ARTIFACT of STORE from version BEFORE to AFTER.

    By default from the last but one version to the current one.
    """
    from influence_dag.query.results import open_study
    from influence_dag.query.text import describe_difference

    with _errors_in_a_line():
        click.echo(describe_difference(open_study(store), artifact, before, after))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--port", default=0, help="Port to listen at; default: any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--project", type=click.Path(path_type=Path), help="The project with its code.")
@click.option("--open/--no-open", "open_browser", default=None, help="Open it in a browser.")
def explore(
    store: Path, port: int, host: str, project: Path | None, open_browser: bool | None
) -> None:
    """Look at what is stored in STORE in a browser: rows, pairs, marks, edits.

    Served on this machine alone until it is stopped (Ctrl-C); needs influence-dag[explore].
    """
    from influence_dag.query.results import open_study

    with _errors_in_a_line():
        from influence_dag.explorer.serving import run

        run(open_study(store, project), host=host, port=port, open_browser=open_browser)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), help="Versions to keep of each artifact.")
def gc(folder: Path, keep: int | None) -> None:
    """Remove old and unfinished versions of the study in FOLDER (with a defs.yaml)."""
    from influence_dag.store import open_store
    from influence_dag.study.loading import load_study

    with _errors_in_a_line():
        study = load_study(folder)
        keep = keep or study.settings.store.keep_versions
        locks = study.settings.store.locks
        removed = open_store(study.store_address, keep_versions=keep, locks=locks).gc()
        click.echo("\n".join([*removed, f"{len(removed)} removed, {keep} versions kept of each"]))


@contextmanager
def _errors_in_a_line() -> Iterator[None]:
    """What the user can mend is told without a traceback; SIGTERM is told as Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except SystemExit as error:
        sys.exit(f"StudyError: {ended(error)}")
    except InfluenceDagError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as interrupt:
        click.echo(str(interrupt) or "interrupted", err=True)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
