"""What Dagster loads: every study below `assets/`."""

import dagster as dg

import assets


@dg.definitions
def defs() -> dg.Definitions:
    """The studies of the project in whose folder Dagster was started."""
    from pathlib import Path

    project = Path(assets.__file__).resolve().parent.parent
    return dg.Definitions.merge(
        dg.load_from_defs_folder(project_root=project),
        dg.Definitions(executor=dg.in_process_executor),
    )
