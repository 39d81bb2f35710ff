"""The command line: `influence-dag materialize assets/digits`."""

import sys
from pathlib import Path

import click

from influence_dag import __version__
from influence_dag.errors import InfluenceDagError


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Influence functions of PyTorch models as a persisted, labelled asset graph."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--show", is_flag=True, help="Print where things are and what they say.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def materialize(folder: Path, show: bool, quiet: bool) -> None:
    """Bring every artifact of the study in FOLDER (with a defs.yaml) up to date."""
    from influence_dag.running import materialize as run

    try:
        results = run(folder, progress=False if quiet else None)
    except InfluenceDagError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if show:
        from influence_dag.showing import describe

        click.echo(describe(results))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def show(store: Path) -> None:
    """Print what is stored in STORE (for example data/store/digits)."""
    from influence_dag.query import open_study
    from influence_dag.showing import describe

    try:
        click.echo(describe(open_study(store)))
    except InfluenceDagError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
