"""What people decided in the explorer, as an asset: marks, exported edits, and what became of them.

Nobody but a person makes it, so it is observed and never materialised. It is kept beside the store
(`explorer/marks.py`); what is in the store stays a function of fingerprints.
"""

from typing import Any

import dagster as dg

from influence_dag.components.keys import DATA_VERSION_TAG, asset_key
from influence_dag.explorer.marks import Marks
from influence_dag.fingerprints import fingerprint
from influence_dag.study.study import Study

ABOUT = (
    "What was decided in the explorer: rows marked to be relabelled, dropped or kept, and each "
    "exported edit with what it was predicted to do and what a refit did. Kept beside the store; "
    "observed, and at the end of each refresh."
)


def edits_asset(study: Study) -> dg.SourceAsset:
    """The asset `<study>/edits`, whose data version is that of the marks and edits."""

    def edits() -> dg.ObserveResult:
        marks = Marks(study.store_address)
        return dg.ObserveResult(
            data_version=dg.DataVersion(version_of(marks)), metadata=_counted(marks)
        )

    return dg.observable_source_asset(
        key=asset_key(study, "edits"),
        tags=study.settings.dagster.tags,
        group_name=study.name,
        description=ABOUT,
    )(edits)


def version_of(marks: Marks) -> str:
    """Hash of every mark, and of the edits that were exported, which never change."""
    return fingerprint("edits", marks.all(), marks.edits)


def observed(study: Study) -> dg.AssetObservation | None:
    """What there is after a refresh, with outcomes; None where nobody has marked anything."""
    marks = Marks(study.store_address)
    if not marks.all() and not marks.edits:
        return None
    return dg.AssetObservation(
        asset_key(study, "edits"),
        metadata=_counted(marks) | _outcomes(study, marks),
        tags={DATA_VERSION_TAG: version_of(marks)},
    )


def _counted(marks: Marks) -> dict[str, int]:
    every = marks.all()
    return {
        "marks": len(every),
        **{
            f"to_{action}": sum(mark["action"] == action for mark in every.values())
            for action in ("relabel", "drop")
        },
        "edits": len(marks.edits),
    }


def _outcomes(study: Study, marks: Marks) -> dict[str, Any]:
    """Predicted and actual changes of the mean test loss: a table, and numbers of the last edit."""
    from influence_dag.explorer.opened import Opened
    from influence_dag.explorer.outcome import outcomes
    from influence_dag.query.results import StudyResults

    edits = outcomes(Opened(StudyResults(study.store_address)), marks)
    if not edits:
        return {}
    records = [dg.TableRecord(_record(each)) for each in edits]
    last = edits[0]
    charted = {
        f"{what}_change_of_mean_loss": last[f"{what}_mean"]
        for what in ("predicted", "actual")
        if last.get(f"{what}_mean") is not None
    }
    return {"outcomes": dg.MetadataValue.table(records), **charted}


def _record(edit: dict[str, Any]) -> dict[str, str]:
    def number(name: str) -> str:
        return "" if edit.get(name) is None else f"{edit[name]:+.4g}"

    return {
        "edit": str(edit["number"]),
        "made": edit["made"],
        "marks": str(edit["marks"]),
        "state": edit["state"] if edit["state"] == "done" else f"{edit['state']}: {edit['why']}",
        "predicted": number("predicted_mean"),
        "actual": number("actual_mean"),
    }
