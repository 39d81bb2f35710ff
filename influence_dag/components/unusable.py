"""A study that cannot be loaded, shown where a person looks: the others are loaded all the same."""

import logging
from zlib import crc32

import dagster as dg

from influence_dag.errors import InfluenceDagError
from influence_dag.study.study import usable_name

GROUP = "studies_not_loaded"


def unusable(folder: str, error: InfluenceDagError) -> dg.Definitions:
    """An asset that nothing materialises, which says in the UI and in the log what is wrong.

    An error here would take all other studies of the code location with it.
    """
    logging.getLogger("dagster").warning("%s: not loaded: %s", folder, error)
    own = f"{usable_name(folder)}_{crc32(folder.encode()):08x}"  # of two that are alike, too
    spec = dg.AssetSpec(
        [GROUP, own],
        group_name=GROUP,
        description=f"The study in the folder {folder} was not loaded. {error}",
        kinds={"error"},
    )
    return dg.Definitions(assets=[spec])
