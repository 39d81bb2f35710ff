"""The training rows of a stored study that are most likely mislabelled."""

from pathlib import Path

import xarray as xr

from influence_dag.query.results import StudyResults, open_study


def suspects(
    study: StudyResults | str | Path,
    k: int = 20,
    *,
    method: str | None = None,
    damping: float | None = None,
) -> xr.Dataset:
    r"""The `k` training rows with the largest self-influence, largest first, dim `train`.

    A row on which the model leans for its own sake alone, $\nabla L_i^\top (H + \lambda I)^{-1}
    \nabla L_i$ being large, is either mislabelled or unlike all others: look at these first.

    Variables: `self_influence`; `loss` of the row at the stored θ; for a classifier `predicted`,
    the class that the model would give it. Coordinates: `train` (ids) and `train_label`. `method`
    defaults to the study's first that has self-influences, `damping` to the last of a sweep.
    `idag.suspects(...).to_dataframe()` is a table.

    The losses come from the stored model, which needs the study's code (see `open_study`). Raises
    `StoreError` when no self-influence is stored or `damping` is none of those stored.

        >>> idag.suspects("data/store/digits", 5)  # doctest: +SKIP
    """
    results = study if isinstance(study, StudyResults) else open_study(study)
    return results.suspects(k, method=method, damping=damping)
