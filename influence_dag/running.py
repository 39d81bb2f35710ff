"""The pipeline without a UI: the same assets, in this process."""

from pathlib import Path
from typing import TYPE_CHECKING

from influence_dag.errors import InfluenceDagError
from influence_dag.study.code import put_on_path
from influence_dag.study.history import home_of
from influence_dag.study.loading import load_study
from influence_dag.study.named_code import look_for_callables
from influence_dag.study.study import Study

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults


def materialize(folder: str | Path, *, progress: bool | None = None) -> "StudyResults":
    """Bring every artifact of a study up to date and return the opened results.

    The same assets and checks as in the Dagster UI, run in this process. The run is recorded in
    DAGSTER_HOME, or else in the project's `.dagster` once `make ui` has set it up, and the UI shows
    it; where there is neither, nothing is recorded. `progress` shows a bar on standard error
    (default: when that is a terminal).

    Raises what the failing stage raised (an `InfluenceDagError` for bad input),
    `InfluenceDagError` when an asset check fails, or `KeyboardInterrupt` after SIGINT or SIGTERM.
    What was finished before stays.
    """
    study = load_study(folder)
    put_on_path(study.root)
    _look(study)

    from influence_dag.components.assets import study_definitions
    from influence_dag.components.console import in_process
    from influence_dag.query.results import open_study
    from influence_dag.stages.executors import one_run

    definitions = study_definitions(study, pool=None)  # a killed run would never leave a pool
    try:
        with one_run():
            failed = in_process(
                definitions, f"{study.name}_refresh", home=home_of(study.root), progress=progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(study)) from None
    if failed:
        raise InfluenceDagError("asset checks failed:\n" + "\n".join(failed))
    return open_study(study.store_address, project=study.root)


def _look(study: Study) -> None:
    """Raise for what is wrong with small files and with named code, before Dagster is imported."""
    look_for_callables(study)
    from influence_dag.stages.dataset import look
    from influence_dag.stages.workbench import Workbench

    look(Workbench(study, plan_only=True))
    from influence_dag.objective.modules import import_callable
    from influence_dag.study.base import is_callable_name

    model = study.settings.model
    for field in ("build", "loss", "fit", "measurement"):
        named = getattr(model, field)
        if isinstance(named, str) and is_callable_name(named):
            import_callable(named, study.root, f"model.{field}")


def _interrupted(study: Study) -> str:
    """What an interrupted run leaves behind."""
    from influence_dag.store import open_store

    left = open_store(study.store_address).unfinished()
    blocks = "".join(f", and {count} finished blocks of {name}" for name, count in left.items())
    return (
        f"{study.name}: interrupted. Every artifact that was stored is complete{blocks}; run it "
        "again to go on from there"
    )
