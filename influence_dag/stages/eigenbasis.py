"""Kronecker-factored methods in their eigenbasis: pairs of vectors where others have dense factors.

What is asked of them there is what the stored factors would answer, to rounding, and is asked only
where it is sure to be: with the model, curvature and settings that the factors were made with.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.stages import methods, naming
from influence_dag.stages.reading import load_gradients, load_objective, load_rows
from influence_dag.stages.workbench import Workbench

if TYPE_CHECKING:
    from influence_dag.gradients import Gradients
    from influence_dag.objective import Objective
    from influence_dag.solvers.ekfac import KroneckerFactorization
    from influence_dag.solvers.kronecker_scores import RotatedGradients


def has_eigenbasis(bench: Workbench, method: str) -> bool:
    """Whether a method's factorisation is one of Kronecker factors over all parameters."""
    asked = bench.settings.methods[method]
    return asked.of_layers and asked.blocks == "full"


def rotated_rows(
    bench: Workbench,
    factorization: "KroneckerFactorization",
    slots: slice,
    present: np.ndarray | None = None,
) -> "RotatedGradients":
    """Stored gradients of a run of training rows, or of those `present` in it, rotated."""
    import torch

    from influence_dag.solvers.kronecker_scores import RotatedGradients

    gradients = load_gradients(bench, slots)
    if present is not None:
        gradients = gradients[torch.from_numpy(present).to(bench.device)]
    return RotatedGradients.of(factorization, gradients)


@dataclass(frozen=True, eq=False)
class GradientsOfTests:
    """Gradients of the test rows whose factors are stored, made anew: their factors are not read.

    `axis` has the rows of the stored factors.
    """

    bench: Workbench
    objective: "Objective"
    factorization: "KroneckerFactorization"
    axis: Axis

    @classmethod
    def of(cls, bench: Workbench, method: str) -> "GradientsOfTests | None":
        """None where the stored factors are of another age than the rows, θ or the curvature."""
        stored = bench.require(naming.factors(method))
        axis, now = bench.axis_of(stored, "test"), bench.axis("dataset", "test")
        if stored.attrs["base_key"] != methods.factors_key(bench, method):
            return None
        if len(now) < len(axis) or not np.array_equal(now.keys[: len(axis)], axis.keys):
            return None
        loaded = methods.load_factorization(bench, method)
        factorization = cast("KroneckerFactorization", loaded)  # as `has_eigenbasis` says
        return cls(bench, load_objective(bench), factorization, axis)

    def gradients(self, slots: slice) -> "tuple[np.ndarray, Gradients | None]":
        """The positions of a run of slots that hold a row, and the gradients of these."""
        from influence_dag.gradients import per_sample_gradients

        present = np.flatnonzero(self.axis.valid[slots])
        if not len(present):
            return present, None
        rows = load_rows(self.bench, self.axis, slots.start + present)
        return present, per_sample_gradients(self.objective, rows, of="measurement")
