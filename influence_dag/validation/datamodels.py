r"""Linear datamodelling score: do influences rank what models fitted to random subsets do?

The model is fitted to many random subsets S of the training rows (Park et al. 2023, "TRAK";
Ilyas et al. 2022, "Datamodels"). For each test row j, influences predict its loss on the model
of S up to a constant,

$$ \hat L_j(S) = L_j - \sum_i (w_i(S) - \tfrac1n) \, I_{ji}, \qquad w_i(S) = [i \in S] / |S| $$

and the score is the rank correlation over subsets between prediction and what was found. The
change is large (half of the data), so this asks more of an influence than leaving one row out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.seeding import seeded
from influence_dag.validation.agreement import (
    bootstrap_spearman,
    check_shape,
    mean_of_known,
    pearson,
    spearman,
)
from influence_dag.validation.candidates import Candidates, exact_candidates
from influence_dag.validation.refits import Fitting, refit


def draw_subsets(
    n: int, *, fraction: float = 0.5, count: int = 100, seed: int = 0
) -> Bool[Tensor, "m n"]:
    """Which rows are in each of `count` random subsets of `round(fraction * n)` rows.

    Raises `ModelError` for a fraction that leaves no row in or none out, and for no subset.
    """
    if count < 1:
        raise ModelError(f"count={count} random subsets; draw one or more")
    size = round(fraction * n) if math.isfinite(fraction) else 0
    if not 0 < size < n:
        cure = "take a fraction by which some rows are in and some are not"
        raise ModelError(
            f"subsets of {size} of {n} rows (fraction={fraction:g}); "
            f"{cure if n > 1 else 'they need two training rows or more'}"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(count)])
    return torch.zeros(count, n, dtype=torch.bool).scatter_(1, chosen, True)


@dataclass(frozen=True, eq=False)
class SubsetFits:
    """Test losses (or measurements) of models fitted to subsets, one model a row."""

    membership: Bool[Tensor, "m n"]
    values: Float[Array, "m k"]
    refits: dict[str, Any] = field(default_factory=dict)
    row_weights: Float[Tensor, " n"] | None = None

    @property
    def weights(self) -> Float[Tensor, "m n"]:
        """The weight of each row in each subset's mean loss."""
        members = self.membership.double() * self._row_weights
        return members / members.sum(dim=1, keepdim=True)

    def predicted(self, influences: Float[Tensor, "k n"]) -> Float[Array, "k m"]:
        r"""Predicted change of each test row's loss from the full model to each subset's.

        $-\sum_i I_i (m_i / W_S - 1 / W)$, with $I_i$ that has the row's weight in it.
        """
        members = self.membership.double()
        inside = (members * self._row_weights).sum(dim=1, keepdim=True)
        moved = members / inside - 1 / self._row_weights.sum()
        return (-influences.to("cpu", torch.float64) @ moved.T).numpy()

    @property
    def _row_weights(self) -> Float[Tensor, " n"]:
        if self.row_weights is None:
            return torch.ones(self.membership.shape[1], dtype=torch.float64)
        return self.row_weights.to("cpu", torch.float64)


def fit_subsets(
    objective: Objective,
    train: Rows,
    test: Rows,
    membership: Bool[Tensor, "m n"],
    *,
    weight_decay: float,
    **fitting: Unpack[Fitting],
) -> SubsetFits:
    r"""Fit to each subset, as one ensemble, the mean loss over it plus $(w/2) ‖θ‖²$.

    `start` as in `refit`: θ (default) is right for a convex model. For a network, give the
    initial weights of the full fit, or others for each member (`initial_params`): started at θ,
    every subset's model would have seen all the data. `tolerance` (default 1e-5), `max_steps`
    (500), `on_failure` and `proximal` as in `refit`.
    """
    ending: Fitting = {"tolerance": 1e-5, "max_steps": 500, **fitting}
    fits = SubsetFits(membership, np.empty((len(membership), 0)), row_weights=train.weights)
    refits = refit(objective, train, fits.weights, weight_decay=weight_decay, **ending)
    values = refits.measurements(test).numpy(force=True)
    return replace(fits, values=values, refits=refits.summary())


def initial_params(build: Callable[[], nn.Module], seeds: range) -> Float[Tensor, "m p"]:
    """Flat parameters of freshly built modules, one for each seed; generators go on as before."""
    built = []
    for seed in seeds:
        with seeded(seed):
            built.append(Objective(build(), "mse").params.double())
    return torch.stack(built)


@dataclass(frozen=True, eq=False)
class Score:
    """Linear datamodelling score of one kind of influence; `interval` is the mean's, 95 %."""

    per_test: Float[Array, " k"]
    interval: tuple[float, float]
    pearson: float
    damping: float | None = None

    @property
    def mean(self) -> float:
        """Mean over test rows; rows whose ranks are undefined do not count."""
        return mean_of_known(self.per_test)

    def __str__(self) -> str:
        damping = "" if self.damping is None else f" (damping {self.damping:g})"
        return f"{self.mean:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]{damping}"


def linear_datamodelling_score(
    influences: Float[Tensor, "k n"],
    fits: SubsetFits,
    *,
    damping: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Score:
    """Spearman's correlation over subsets, per test row, of predicted and found losses.

    Raises `ModelError` for influences of another shape than (test rows, training rows).
    """
    check_shape(influences, fits.values.shape[1], fits.membership.shape[1])
    predicted, actual = fits.predicted(influences), np.ascontiguousarray(fits.values.T)
    return Score(
        spearman(predicted, actual),
        bootstrap_spearman(predicted, actual, replicates=replicates, seed=seed),
        mean_of_known(pearson(predicted, actual)),
        damping,
    )


@dataclass(frozen=True, eq=False)
class Datamodels:
    """Scores by name, best first, and how the subsets' models were fitted."""

    scores: Mapping[str, Score]
    fits: SubsetFits
    chosen_on: SubsetFits | None

    def summary(self) -> dict[str, Any]:
        scores = {
            name: {"lds": score.mean, "interval": list(score.interval), "damping": score.damping}
            for name, score in self.scores.items()
        }
        subsets, rows = self.fits.membership.shape
        size = int(self.fits.membership[0].sum())
        return {"subsets": subsets, "subset_rows": size, "train_rows": rows, "scores": scores,
                **self.fits.refits}  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(f"{name:>16}  {score}" for name, score in self.scores.items())


def datamodels(
    objective: Objective,
    train: Rows,
    test: Rows,
    *,
    weight_decay: float,
    dampings: tuple[float, ...] = (),
    candidates: Candidates | None = None,
    fraction: float = 0.5,
    count: int = 100,
    seeds: tuple[int, int] = (0, 1),
    **fitting: Unpack[Fitting],
) -> Datamodels:
    """Score influences, and baselines beside them, on models fitted to random subsets.

    `candidates` maps a name to influences `(test, train)` for each damping (None where there is
    none); default `exact_candidates`: the Hessian's, Gauss-Newton's and empirical Fisher's at
    `dampings` (default `weight_decay`), gradient dot products, and the training rows' losses.

    Where a name has several dampings, the best on a draw of subsets from `seeds[0]` is taken;
    scores are always of the draw from `seeds[1]`, which had no part in the choice. The rest is
    told to `fit_subsets`.
    """
    objective = objective.in_float64()
    train, test = train.to(dtype=torch.float64), test.to(dtype=torch.float64)
    if candidates is None:
        candidates = exact_candidates(objective, train, test, dampings or (weight_decay,))

    def draw(seed: int) -> SubsetFits:
        subsets = draw_subsets(len(train), fraction=fraction, count=count, seed=seed)
        return fit_subsets(objective, train, test, subsets, weight_decay=weight_decay, **fitting)

    undecided = any(len(by_damping) > 1 for by_damping in candidates.values())
    chosen_on, fits = draw(seeds[0]) if undecided else None, draw(seeds[1])
    scores = {}
    for name, by_damping in candidates.items():
        damping = _best_damping(by_damping, chosen_on)
        scores[name] = linear_datamodelling_score(by_damping[damping], fits, damping=damping)
    ordered = sorted(scores.items(), key=lambda item: _known_first(item[1].mean), reverse=True)
    return Datamodels(dict(ordered), fits, chosen_on)


def _best_damping(
    by_damping: Mapping[float | None, Tensor], fits: SubsetFits | None
) -> float | None:
    if fits is None or len(by_damping) == 1:
        return next(iter(by_damping))
    actual = np.ascontiguousarray(fits.values.T)

    def score(damping: float | None) -> tuple[bool, float]:
        per_test = spearman(fits.predicted(by_damping[damping]), actual)
        return _known_first(mean_of_known(per_test))

    return max(by_damping, key=score)


def _known_first(score: float) -> tuple[bool, float]:
    """By which scores are compared: one that is not defined is below all others."""
    return not np.isnan(score), score
