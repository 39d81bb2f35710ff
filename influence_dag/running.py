"""The pipeline without a UI: the same assets, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.store import open_store
from influence_dag.study.loading import load_study as load_study  # named from here
from influence_dag.study.loading import study_to_run
from influence_dag.study.places import home_of
from influence_dag.study.study import Study

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults
    from influence_dag.stages.shards import ShardExecutor


def materialize(
    folder: str | Path,
    *,
    progress: bool | None = None,
    shard: str | None = None,
    again: bool = False,
) -> "StudyResults":
    """Bring every artifact of a study up to date and return the opened results.

    The same assets and checks as in the Dagster UI, run in this process. The run is recorded in
    DAGSTER_HOME, or else in the project's `.dagster` once `make ui` has set it up, and the UI shows
    it; where there is neither, nothing is recorded. None is made where all is current and the last
    recorded one stands: it would say the same. `again` makes one all the same, which computes
    nothing that is current and makes every check anew. `progress` shows a bar on standard error
    (default: when that is a terminal). With `shard="1/8"` this is the first of eight processes that
    share the blocks, which drives them; the others are `compute_shard`.

    Raises what the failing stage raised (an `InfluenceDagError` for bad input),
    `InfluenceDagError` when an asset check fails, or `KeyboardInterrupt` after SIGINT or SIGTERM.
    What was finished before stays.
    """
    study = study_to_run(folder)
    with _shared(study, shard) as executor:
        return _materialize(study, progress, executor, again=again)


def compute_shard(folder: str | Path, shard: str) -> int:
    """Be one of the processes that share the blocks of a study, but the first: `shard="2/8"`.

    Computes its share of what the first (`materialize(folder, shard="1/8")`) plans, until that has
    ended; returns how many blocks. Locks, writes and publishes nothing.
    """
    from influence_dag.stages.exchange import Shard
    from influence_dag.stages.shards import compute_share

    mine = Shard.parse(shard)
    if mine.drives:
        raise StudyError(f"shard {mine} is the first, which drives: materialize(…, shard='{mine}')")
    return compute_share(study_to_run(folder), mine)


@contextmanager
def _shared(study: Study, shard: str | None) -> "Iterator[ShardExecutor | None]":
    if shard is None:
        yield None
        return
    from influence_dag.stages.exchange import Shard
    from influence_dag.stages.shards import beating, driving

    mine = Shard.parse(shard)
    if not mine.drives:
        raise StudyError(f"shard {mine} is not the first, which drives: compute_shard(…, '{mine}')")
    with driving(mine, study) as executor, beating(study, mine.number):
        yield executor


def _materialize(
    study: Study, progress: bool | None, executor: "ShardExecutor | None", *, again: bool
) -> "StudyResults":
    home = home_of(study.root)
    if again or not (home and _is_done(study, home)):
        _look(study)
        _run(study, home, progress, executor)
    from influence_dag.query.results import open_study  # here: what is wrong is told at once

    return open_study(study.store_address, project=study.root)


def _is_done(study: Study, home: Path) -> bool:
    """Whether a run would compute nothing, and the last one in this history says what it would say.

    Of rows that a callable makes nobody knows before they are made.
    """
    from influence_dag.stages.dataset import has_same_source
    from influence_dag.stages.status import each_status
    from influence_dag.stages.workbench import Workbench

    bench = Workbench(study, plan_only=True)
    if not has_same_source(bench):  # else files would be read twice
        return False
    if not all(each.is_current for each in each_status(bench)):
        return False
    from influence_dag.components.standing import stands

    return stands(study, home)


def _run(
    study: Study, home: Path | None, progress: bool | None, executor: "ShardExecutor | None"
) -> None:
    from influence_dag.components.assets import study_definitions
    from influence_dag.components.console import in_process
    from influence_dag.components.standing import left_by
    from influence_dag.stages.executors import one_run

    definitions = study_definitions(study, pool=None)  # a killed run would never leave a pool
    try:
        with one_run(executor):
            failed = in_process(
                definitions,
                f"{study.name}_refresh",
                home=home,
                progress=progress,
                left=lambda: left_by(study),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(study)) from None
    if failed:
        raise InfluenceDagError("asset checks failed:\n" + "\n".join(failed))


def _look(study: Study) -> None:
    """Raise for what is wrong with small files and with named code, before Dagster is imported."""
    from influence_dag.stages.dataset import look
    from influence_dag.stages.workbench import Workbench

    look(Workbench(study, plan_only=True))
    from influence_dag.stages.keys import import_named

    import_named(study)


def _interrupted(study: Study) -> str:
    """What an interrupted run leaves behind."""
    left = open_store(study.store_address).unfinished()
    blocks = "".join(f", and {count} finished blocks of {name}" for name, count in left.items())
    return (
        f"{study.name}: interrupted. Every artifact that was stored is complete{blocks}; run it "
        "again to go on from there"
    )
