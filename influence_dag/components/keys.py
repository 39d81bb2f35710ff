"""The keys of a study's assets: prefix, name of the study, name of the artifact."""

import logging

import dagster as dg

from influence_dag.errors import StudyError
from influence_dag.stages.graph import artifacts
from influence_dag.study.study import Study

DATA_VERSION_TAG = "dagster/data_version"


def asset_key(study: Study, name: str) -> dg.AssetKey:
    """`[*prefix, study, *name]`, as `digits/direct/influences`."""
    return dg.AssetKey([*study.settings.dagster.prefix, study.name, *name.split("/")])


_made_by: dict[dg.AssetKey, str] = {}  # of a study's sources, in this process


def warn_of_twins(study: Study, by: str) -> None:
    """Warn where the assets of a study that are made `by` this are made by something else as well.

    Dagster refuses definitions that have both, and says neither where they are from nor what to do.
    """
    before = _made_by.setdefault(asset_key(study, "source"), by)
    if before != by:
        logging.getLogger("dagster").warning(
            "%s: its assets are made by %s and by %s; where one code location has both, Dagster "
            "ends in 'Duplicate asset key': have the study in one of the two ways",
            *(study.name, before, by),
        )


def upstream_keys(study: Study) -> list[dg.AssetKey]:
    own = {asset_key(study, node.name) for node in artifacts(study)} | {asset_key(study, "source")}
    keys = [dg.AssetKey.from_user_string(key) for key in study.settings.data.deps]
    if circular := [key.to_user_string() for key in keys if key in own]:
        raise StudyError(
            f"{study.name}: data.deps names {circular[0]}, which is made from this study's data; "
            "name the assets that write its files"
        )
    return keys
