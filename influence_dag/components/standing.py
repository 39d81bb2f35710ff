"""Whether the last recorded run of a study stands: another would do nothing, and say the same.

A run is tagged with a fingerprint of all that it has read and left. It stands while that is what
is there, and while what the history shows of each asset and each check is of that run.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dagster as dg
from tqdm import tqdm

from influence_dag.components.assets import code_version, content_of
from influence_dag.components.console import in_a_line, recorded_or_forgotten
from influence_dag.components.dead_runs import report_dead_runs
from influence_dag.components.edits import version_of
from influence_dag.components.keys import DATA_VERSION_TAG, asset_key
from influence_dag.errors import InfluenceDagError
from influence_dag.explorer.marks import Marks
from influence_dag.fingerprints import fingerprint
from influence_dag.stages.artifacts import Artifact
from influence_dag.stages.graph import artifacts
from influence_dag.stages.workbench import provenance
from influence_dag.store import Version, open_store
from influence_dag.study.study import Study

STATE_TAG = "influence_dag/state"


def state_of(study: Study) -> dict[str, str]:
    """What tags a run that leaves things as they are: files, settings, versions, marks."""
    versions = {node.name: version.data_version for node, version in _stored(study).items()}
    declared = {
        node.name: (code_version(study, node), [asdict(each) for each in node.checks])
        for node in artifacts(study)
    }
    settings = study.settings.model_dump(mode="json")
    read = (content_of(study), version_of(Marks(study.store_address)), provenance()["made_with"])
    return {STATE_TAG: fingerprint(versions, declared, settings, *read)}


def left_by(study: Study) -> dict[str, str]:
    """The tag of a run that has just ended; none where what it has left cannot be told.

    Rows that a callable makes (there is no key of their source) would have to be made once more,
    and files may be gone since they were read.
    """
    try:
        source = open_store(study.store_address).version("dataset").attrs.get("source_key")
        return state_of(study) if source else {}
    except InfluenceDagError:
        return {}


def _stored(study: Study) -> dict[Artifact, Version]:
    store = open_store(study.store_address)
    return {node: store.version(node.name) for node in artifacts(study)}


def stands(study: Study, home: Path) -> bool:
    """Whether a run in this history stands. Tells so, with what its checks warned of.

    Asked of a study whose artifacts are all current.
    """
    with recorded_or_forgotten(home) as instance:
        report_dead_runs(instance)
        run = _last_run(instance, study)
        if run is None or not all(_materialised(instance, study, run)):
            return False
        evaluations = list(_checked(instance, study, run))
    if None in evaluations:
        return False
    for each in filter(None, evaluations):
        if not each.passed:
            tqdm.write(f"warning: {in_a_line(each)}", file=sys.stderr)
    tqdm.write(
        f"{study.name}: all is current, and the checks of run {run:.8} stand", file=sys.stderr
    )
    return True


def _last_run(instance: dg.DagsterInstance, study: Study) -> str | None:
    """The last run of the study's job, if it has succeeded and left what there is now."""
    runs = instance.get_runs(dg.RunsFilter(job_name=f"{study.name}_refresh"), limit=1)
    if not runs or runs[0].status != dg.DagsterRunStatus.SUCCESS:
        return None
    left = runs[0].tags.get(STATE_TAG)
    return runs[0].run_id if left and {STATE_TAG: left} == state_of(study) else None


def _materialised(instance: dg.DagsterInstance, study: Study, run: str) -> Iterator[bool]:
    """Of each asset, whether the history's last materialisation is the run's, of what is stored."""
    stored = {asset_key(study, node.name): version for node, version in _stored(study).items()}
    records = {each.asset_entry.asset_key: each for each in instance.get_asset_records([*stored])}
    for key, version in stored.items():
        entry = records[key].asset_entry if key in records else None
        last = entry and entry.last_materialization_record
        made = last and last.asset_materialization
        shown = made and (made.tags or {}).get(DATA_VERSION_TAG)
        yield last is not None and last.run_id == run and shown == version.data_version


def _checked(
    instance: dg.DagsterInstance, study: Study, run: str
) -> Iterator[dg.AssetCheckEvaluation | None]:
    """The last result of each check; None where that is not the run's, or refuses."""
    keys = [
        dg.AssetCheckKey(asset_key(study, node.name), check.name)
        for node in artifacts(study)
        for check in node.checks
    ]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key in keys:
        event = records[key].event if key in records and records[key].run_id == run else None
        if event is None or event.dagster_event is None:
            yield None
            continue
        result = event.dagster_event.asset_check_evaluation_data
        refuses = not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
        yield None if refuses else result
