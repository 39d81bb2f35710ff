"""Commands on a study's folder: begin one, look ahead, compute, tidy up."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from influence_dag.cli.printing import as_json, emit, table

if TYPE_CHECKING:
    from influence_dag.stages.status import StudyStatus

folder_argument = click.argument("folder", type=click.Path(path_type=Path))


@click.command()
@folder_argument
@click.option(
    "--train", required=True, help="Training rows: a file, a folder of pictures, module:callable."
)
@click.option("--test", required=True, help="Test rows, likewise.")
@click.option("--target", help="The column that the model predicts; not of folders of pictures.")
@click.option(
    "--id", "id_", help="The column of row ids; default, of files: one that is called so."
)
@click.option("--model", help="module:callable that builds the torch module.")
@click.option("--checkpoint", help="A file with the model's fitted parameters.")
@click.option("--classes", help="The labels in the order of the model's outputs: benign,malignant.")
@as_json
def init(
    folder: Path, id_: str | None, classes: str | None, as_json: bool, **given: str | None
) -> None:
    """Write a working study to FOLDER: defs.yaml, with every option, and model.py.

    Rows are tables, arrays, embeddings with their texts, or folders of pictures with a folder a
    class. Without --model it is a softmax or linear regression, whichever fits the target.
    """
    from influence_dag.starting.folder import init as write
    from influence_dag.starting.given import Start

    order = tuple(map(str.strip, classes.split(","))) if classes else None
    said = write(Start(folder, id=id_, classes=order, **given))  # type: ignore[arg-type]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    emit({"folder": folder, "files": files}, str(said), as_json=as_json)


@click.command()
@folder_argument
@as_json
def check(folder: Path, as_json: bool) -> None:
    """What is wrong with the study in FOLDER, and what it will cost; nothing is computed.

    Reads the rows, builds the model and tries both on a few rows.
    """
    from influence_dag.stages.foreseen import foresee

    foreseen = foresee(folder)
    told = {
        "study": foreseen.study.name,
        "rows": foreseen.rows,
        "features": foreseen.features,
        "classes": foreseen.classes,
        "parameters": foreseen.parameters,
        "costs": [asdict(cost) for cost in foreseen.costs],
        "warnings": foreseen.warnings,
    }
    emit(told, str(foreseen), as_json=as_json)


@click.command()
@folder_argument
@click.option("--show", is_flag=True, help="Print where things are and what they say.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--shard", help="i/n: be the i-th of n processes that share the blocks; 1 drives.")
@click.option("--again", is_flag=True, help="Make a run also where the last recorded one stands.")
@as_json
def materialize(
    folder: Path, show: bool, quiet: bool, shard: str | None, again: bool, as_json: bool
) -> None:
    """Bring every artifact of the study in FOLDER (with a defs.yaml, or its results) up to date.

    The run is recorded for Dagster's UI in DAGSTER_HOME, or else in the project's .dagster once
    `make ui` has set it up; where there is neither, a line says so. Where all is current and the
    last recorded run stands, that is said, and no other is made, unless --again asks for one:
    it computes nothing that is current, and makes every check anew.
    Interrupted (Ctrl-C, SIGTERM) it ends with exit code 130; run again, it goes on from there.
    """
    from influence_dag.running import compute_shard
    from influence_dag.running import materialize as run
    from influence_dag.study.places import why_unrecorded

    if shard is not None and not _drives(shard):
        if given := [name for name, each in (("--again", again), ("--show", show)) if each]:
            raise click.UsageError(f"{given[0]} is for the shard that makes the run, 1/n")
        count = compute_shard(folder, shard)
        emit({"blocks": count}, f"shard {shard}: {count} blocks computed", as_json=as_json)
        return
    results = run(folder, progress=False if quiet else None, shard=shard, again=again)
    if results.project and (why := why_unrecorded(results.project)):
        click.echo(why, err=True)
    if show or as_json:
        from influence_dag.query.text import describe, stored

        emit(stored(results), lambda: click.echo(describe(results)), as_json=as_json)


def _drives(shard: str) -> bool:
    """Whether it is the first, `01/8` too."""
    from influence_dag.stages.exchange import Shard

    return Shard.parse(shard).drives


@click.command()
@folder_argument
@as_json
def status(folder: Path, as_json: bool) -> None:
    """What a refresh of the study in FOLDER would compute, and why. Computes nothing."""
    from influence_dag.stages.status import status as find

    told = find(folder)
    emit(_status(told), lambda: table(told.rows[0], told.rows[1:]), as_json=as_json)


def _status(status: "StudyStatus") -> dict[str, Any]:
    rows = [asdict(each) | {"is_current": each.is_current} for each in status.artifacts]
    return {"study": status.study, "is_current": status.is_current, "artifacts": rows}


@click.command()
@folder_argument
@click.option("--keep", type=click.IntRange(min=1), help="Versions to keep of each artifact.")
@as_json
def gc(folder: Path, keep: int | None, as_json: bool) -> None:
    """Remove old and unfinished versions of the study in FOLDER (with a defs.yaml)."""
    from influence_dag.store import open_store
    from influence_dag.study.loading import check_alone, load_study

    study = load_study(folder)
    settings = study.settings.store
    keep = keep or settings.keep_versions
    store = open_store(
        study.store_address,
        keep_versions=keep,
        lock_timeout=settings.lock_timeout,
        locks=settings.locks,
        report=lambda waits: click.echo(waits, err=True),
    )
    check_alone(study, store)
    removed = store.gc()
    said = "\n".join([*removed, f"{len(removed)} removed, {keep} versions kept of each"])
    emit({"removed": removed, "kept_of_each": keep}, said, as_json=as_json)
