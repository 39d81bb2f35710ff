"""The outputs of a batch as a tuple of tensors that losses are functions of."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag import structures
from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective
from influence_dag.objective.rows import Rows

Leaves = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class OutputSpace:
    """The floating-point tensors among a model's outputs for some rows.

    A model may return them in any structure; the loss gets that structure back, with the tensors
    that it is asked about in their places.
    """

    objective: Objective
    rows: Rows
    template: Any
    places: tuple[int, ...]

    @classmethod
    def of(cls, objective: Objective, rows: Rows) -> "OutputSpace":
        """Raises `ModelError` for outputs among which there is no floating-point tensor."""
        with torch.no_grad():
            outputs = objective.outputs(objective.params, rows.x)
        return cls.among(objective, rows, outputs)

    @classmethod
    def among(cls, objective: Objective, rows: Rows, outputs: Any) -> "OutputSpace":
        """That of what the model has returned for the rows. Raises as `of`."""
        places = tuple(structures.differentiable(outputs))
        if not places:
            raise ModelError(
                f"{type(objective.module).__name__} returns {structures.described(outputs)}; "
                "wanted a tensor, or a tuple or dict with tensors of floating-point numbers"
            )
        return cls(objective, rows, outputs, places)

    @classmethod
    def run(
        cls, objective: Objective, theta: Float[Tensor, " p"], rows: Rows
    ) -> tuple["OutputSpace", Any]:
        """As `of`, and the outputs as functions of θ, for `leaves_of`: one pass for both."""
        outputs = objective.outputs(theta, rows.x)
        numbers = structures.map_tensors(lambda tensor: tensor.detach().clone(), outputs)
        return cls.among(objective, rows, numbers), outputs

    def leaves(self, theta: Float[Tensor, " p"]) -> Leaves:
        """The tensors as functions of θ."""
        return self.leaves_of(self.objective.outputs(theta, self.rows.x))

    def leaves_of(self, outputs: Any) -> Leaves:
        """The tensors among what the model has returned for the rows."""
        tensors = structures.tensors_of(outputs)
        return tuple(tensors[place] for place in self.places)

    @property
    def values(self) -> Float[Tensor, "n m"]:
        """The tensors at `objective.params`, flat."""
        return flat(self.leaves_of(self.template))

    def losses(self, leaves: Leaves) -> Float[Tensor, " n"]:
        """The loss of each row with the tensors at `leaves`."""
        tensors = structures.tensors_of(self.template)
        for place, leaf in zip(self.places, leaves, strict=True):
            tensors[place] = leaf
        return self.objective.loss(structures.with_tensors(self.template, tensors), self.rows.y)

    def used(self) -> "OutputSpace":
        """Those of the tensors that the loss depends on; `ModelError` for one without rows."""
        leaves = tuple(
            leaf.detach().clone().requires_grad_() for leaf in self.leaves_of(self.template)
        )
        with torch.enable_grad():
            total = self.losses(leaves).sum()
        gradients, used = torch.autograd.grad(total, leaves, allow_unused=True), []
        for place, gradient in zip(self.places, gradients, strict=True):
            if gradient is None:
                continue
            if gradient.shape[:1] == (len(self.rows),):
                used.append(place)
            elif gradient.any():
                shape, rows = tuple(gradient.shape), len(self.rows)
                raise ModelError(
                    f"the loss depends on an output of shape {shape}, without a row for each of "
                    f"{rows} samples: a Fisher is of outputs row by row; take a curvature that is "
                    "not (direct or cg), or leave that output out of the loss"
                )
        return OutputSpace(self.objective, self.rows, self.template, tuple(used))

    def along(self) -> Objective:
        r"""The same model with $v \cdot f$ for the loss of a row, whose target is the vector v."""
        linear = copy.copy(self.objective)
        linear.loss = _Along(self.places)
        return linear

    def loss_of_flat(self, outputs: Float[Tensor, "n m"], targets: Any) -> Float[Tensor, " n"]:
        """The loss of each row as a function of `flat(leaves)`, for any targets."""
        return self.objective.loss(self.structured(outputs), targets)

    def loss_of_leaf(self, leaf: Float[Tensor, "n ..."], targets: Any) -> Float[Tensor, " n"]:
        """The same of the only tensor, in its own shape."""
        return self.loss_of_flat(leaf.flatten(1), targets)

    def structured(self, outputs: Float[Tensor, "n m"]) -> Any:
        """What the model returns, with these numbers in the places of `flat(leaves)`."""
        tensors = structures.tensors_of(self.template)
        shapes = [tensors[place].shape for place in self.places]
        widths = [shape[1:].numel() for shape in shapes]
        for place, shape, part in zip(self.places, shapes, outputs.split(widths, 1), strict=True):
            tensors[place] = part.reshape(len(outputs), *shape[1:])
        return structures.with_tensors(self.template, tensors)


@dataclass(frozen=True)
class _Along:
    places: tuple[int, ...]

    def __call__(self, outputs: Any, vectors: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        tensors = structures.tensors_of(outputs)
        return (flat(tuple(tensors[place] for place in self.places)) * vectors).sum(1)


def flat(leaves: Leaves) -> Float[Tensor, "n m"]:
    """Tensors with a common leading axis as one matrix, a row each."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], dim=1)
