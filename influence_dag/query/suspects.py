"""The training rows of a stored study that are most likely mislabelled."""

from pathlib import Path

import xarray as xr

from influence_dag.query.results import StudyResults, open_study
from influence_dag.suspicion import NEIGHBOURS, Space


def suspects(
    study: StudyResults | str | Path,
    k: int = 20,
    *,
    method: str | None = None,
    damping: float | None = None,
    by: str = "combined",
    neighbours: int = NEIGHBOURS,
    space: Space = "auto",
    folds: int = 0,
) -> xr.Dataset:
    r"""The `k` most suspicious training rows, worst first, dim `train`.

    Variables, each of which can be ranked `by`:

    - `combined` (the default): what the neighbours and what the model say, as one; it found flipped
      labels as well as the best of the others, or better (docs/validation.md);
    - `neighbour_disagreement`: the share of the `neighbours` nearest other rows with another
      label, near ones counting more; of numbers, the distance from their mean;
    - `loss` of the row at the stored θ; `out_of_fold_loss`, under one of `folds` models that have
      not seen it, when these refits are asked for;
    - `self_influence`, $\nabla L_i^\top (H + \lambda I)^{-1} \nabla L_i$: large where the model
      leans on a row for its own sake alone;
    - `knn_shapley`, the row's value in a nearest-neighbour classifier of the test rows (low ones
      first), a baseline;

    and for a classifier `predicted`, the class that the model gives it. Coordinates: `train` (ids)
    and `train_label`. A suspect is mislabelled, or right and unlike all others.

    `space` is where neighbours are looked for: the inputs, where they are one array of real
    numbers (`auto`: else nowhere, and `combined` is what the model says), or the `penultimate`
    space, what the last linear layer takes. That and `folds` need the study's code (see
    `open_study`). All distances are computed, block by block: n² d multiplications, two minutes
    for 50,000 rows of 784 numbers.

    `method` defaults to the study's first that has self-influences, `damping` to the last of a
    sweep. `idag.suspects(...).to_dataframe()` is a table. Raises `StoreError` when no
    self-influence is stored, `damping` is none of those stored, or there is no such ranking.

        >>> idag.suspects("data/store/digits", 5)  # doctest: +SKIP
    """
    results = study if isinstance(study, StudyResults) else open_study(study)
    return results.suspects(
        k, method=method, damping=damping, by=by, neighbours=neighbours, space=space, folds=folds
    )
