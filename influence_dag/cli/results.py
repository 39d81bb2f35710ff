"""Commands on stored results: what is there, who is behind a test row, what changed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.shell_completion import CompletionItem

from influence_dag.cli.printing import as_json, emit, table
from influence_dag.cli.strongest import Strongest
from influence_dag.suspicion import SUSPICIONS, Space

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults


def _completed(of: Callable[["StudyResults"], list[str]]) -> Callable[..., list]:
    """What a shell completes: names in the store that was typed before."""

    def complete(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
        from influence_dag.errors import InfluenceDagError
        from influence_dag.query.results import open_study

        store = ctx.params.get("store") or next(iter(ctx.args), "")  # an option without its value
        try:
            known = of(open_study(str(store)))
        except (InfluenceDagError, OSError):
            return []
        return [CompletionItem(name) for name in known if name.startswith(begun)]

    return complete


artifacts = _completed(lambda study: study.artifacts)
methods = _completed(lambda study: study.methods)
store_argument = click.argument("store")  # a path, or an address such as memory://name/study
artifact_argument = click.argument("artifact", shell_complete=artifacts)
method_option = click.option(
    "--method", shell_complete=methods, help="Default: the first that the study has."
)
damping_option = click.option("--damping", type=float, help="Of a sweep; default: the last.")
k_option = click.option("-k", type=click.IntRange(min=1), default=10, help="How many rows.")


def _open(store: str) -> "StudyResults":
    """The study's results; until the command ends, dask asks no cluster for what it reads."""
    import dask.config
    from dask.threaded import get

    from influence_dag.query.results import open_study

    # Given as a function: by its name too, what speaks to clusters would be imported.
    click.get_current_context().with_resource(dask.config.set(scheduler=get))
    return open_study(store)


@click.command()
@store_argument
@as_json
def show(store: str, as_json: bool) -> None:
    """Print what is stored in STORE (for example data/store/digits, or assets/digits)."""
    from influence_dag.query.text import describe, stored

    results = _open(store)
    emit(stored(results), lambda: click.echo(describe(results)), as_json=as_json)


class _OfARow(click.Command):
    """A command with an id, which may begin with a dash, as a negative number does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.possibilities:
                raise
            said = f"{error.message} An id that begins with a dash stands last, behind `--`."
            raise click.UsageError(said, ctx) from error


@click.command(cls=_OfARow)
@store_argument
@click.argument("test_id")
@k_option
@method_option
@damping_option
@click.option("--content", is_flag=True, help="Show the rows themselves: columns, texts, images.")
@as_json
def top(
    store: str,
    test_id: str,
    k: int,
    method: str | None,
    damping: float | None,
    content: bool,
    as_json: bool,
) -> None:
    """The training rows that help TEST_ID most, and those that harm it most.

    Positive helps: without the row the loss of TEST_ID would be larger, by about the number under
    `left out`.
    """
    results = _open(store)
    row = results.influences(test_id, method=method, damping=damping).load()
    told = Strongest(results, method or results.methods[0], row, k, content)
    emit(told.values(), told.print, as_json=as_json)


@click.command()
@store_argument
@k_option
@method_option
@damping_option
@click.option(
    "--by",
    type=click.Choice(list(SUSPICIONS)),
    default="combined",
    help="What they are ranked by; default: neighbours and model together.",
)
@click.option("--folds", type=int, default=0, help="Refit this often, for losses out of fold.")
@click.option(
    "--space",
    type=click.Choice(get_args(Space)),
    default="auto",
    help="Where neighbours are looked for.",
)
@as_json
def suspects(
    store: str,
    k: int,
    method: str | None,
    damping: float | None,
    by: str,
    folds: int,
    space: Any,
    as_json: bool,
) -> None:
    """The training rows that are most likely mislabelled; look at these first.

    From what is stored. --folds and --space penultimate run the project's code (model.build).
    """
    ranked = _open(store).suspects(
        k, method=method, damping=damping, by=by, folds=folds, space=space
    )
    rows = ranked.reset_coords().to_dataframe().reset_index()
    columns = [name for name in rows if name != "damping"]
    values = [dict(zip(columns, row, strict=True)) for row in rows[columns].values.tolist()]

    def printed() -> None:
        cells = [
            [f"{v:.4g}" if isinstance(v, float) else v for v in each.values()] for each in values
        ]
        table(columns, cells, right=list(SUSPICIONS))

    emit({"method": ranked.attrs["method"], "rows": values}, printed, as_json=as_json)


@click.command()
@store_argument
@artifact_argument
@as_json
def versions(store: str, artifact: str, as_json: bool) -> None:
    """The kept versions of an ARTIFACT (for example direct/influences) in STORE."""
    results = _open(store)
    rows = results.version_table(artifact)
    current = results.store.version(artifact).number
    values = [row | {"is_current": row["version"] == current} for row in rows]
    sizes = list({name: 0 for row in values for name in row if name.endswith("_rows")})

    def printed() -> None:
        cells = [
            [
                row["version"],
                (row["data_version"] or "damaged")[:12],
                *(f"{row[size]:,}" if size in row else "" for size in sizes),
                "current" if row["is_current"] else "",
            ]
            for row in values
        ]
        columns = ["version", "data_version", *sizes, ""]
        table(columns, cells, right=["version", *sizes])

    emit(values, printed, as_json=as_json)


@click.command()
@store_argument
@artifact_argument
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
@as_json
def diff(store: str, artifact: str, before: int | None, after: int | None, as_json: bool) -> None:
    """What changed in an ARTIFACT of STORE from version BEFORE to AFTER.

    By default from the last but one version to the current one.
    """
    from influence_dag.query import text

    results = _open(store)
    if as_json:
        difference = text.difference(results, artifact, before, after)
        emit(text.difference_as_values(difference), "", as_json=True)
    else:
        click.echo(text.describe_difference(results, artifact, before, after))


@click.command()
@store_argument
@click.argument("target")
@click.option(
    "--artifact",
    "chosen",
    multiple=True,
    shell_complete=artifacts,
    help="Only these, as often as wanted; default: all (of parquet, all methods' influences).",
)
@as_json
def export(store: str, target: str, chosen: tuple[str, ...], as_json: bool) -> None:
    """Write STORE to TARGET as plain files: out.zarr, out.nc or out.parquet.

    out.zarr is one consolidated Zarr 2 group, out.nc one netCDF file, both with a group an
    artifact; out.parquet is one long table, a line for each pair of a test and a training row.
    A .zarr may be put in an object store, s3://bucket/out.zarr, whose credentials and endpoint are
    taken from the environment.
    """
    from influence_dag.query.exports import export as write

    written = write(_open(store), target, chosen)
    emit(written, f"{target}: {', '.join(written['artifacts'])}", as_json=as_json)


@click.command()
@store_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Default: <study>.html here.",
)
@as_json
def report(store: str, output: Path | None, as_json: bool) -> None:
    """Write a study's results on one page: what was measured, and whether to trust it.

    One HTML file with its pictures inside, which opens from disk and prints.
    """
    from influence_dag.query.report import write_report

    results = _open(store)
    output = output or Path(f"{results.store.name}.html")
    findings = write_report(results, output)
    values = {"file": output, **findings.to_dict()}
    emit(values, f"{findings.verdict.text}\n{output}", as_json=as_json)


@click.command()
@store_argument
@click.option("--port", default=0, help="Port to listen at; default: any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The project with its code.",
)
@click.option("--open/--no-open", "open_browser", default=None, help="Open it in a browser.")
def explore(
    store: str, port: int, host: str, project: Path | None, open_browser: bool | None
) -> None:
    """Look at what is stored in STORE in a browser: rows, pairs, marks, edits.

    Served on this machine alone until it is stopped (Ctrl-C); needs influence-dag[explore].
    """
    from influence_dag.explorer.serving import run
    from influence_dag.query.results import open_study

    run(open_study(store, project), host=host, port=port, open_browser=open_browser)
