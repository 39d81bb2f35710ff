"""The same model at many parameter vectors: losses, values and gradients of all of them at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from influence_dag.gradients.products import runs
from influence_dag.objective.footprint import kept_numbers
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.objective.outputs import OutputSpace

_NUMBERS = 2**23  # of the largest temporary of a batch of members, about
_LOOKED_AT = 8  # rows, by which a model is seen to be linear
_SPARSE = 0.75  # below this share of rows with a weight, members work on their own rows alone


def is_linear_in_parameters(objective: Objective, rows: Rows) -> bool:
    """Whether the outputs of some of the rows are affine in θ.

    Their second differences along a random line vanish but for rounding.
    """
    some = torch.linspace(0, len(rows) - 1, min(_LOOKED_AT, len(rows))).long()
    theta, space = objective.params, OutputSpace.of(objective, rows[some])
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta)
    with torch.no_grad():
        leaves = (space.leaves(theta + t * step) for t in (-1.0, 0.0, 1.0))
        before, here, after = (torch.cat([leaf.flatten() for leaf in each]) for each in leaves)
    size = max(float(value.abs().max()) for value in (before, here, after))
    rounding = torch.finfo(theta.dtype).eps ** 0.5 / 10 * size
    return bool((before + after - 2 * here).abs().max() <= rounding)


def member_values(
    objective: Objective,
    params: Float[Tensor, "m p"],
    rows: Rows,
    *,
    of: Literal["loss", "measurement"] = "loss",
) -> Float[Tensor, "m k"]:
    """The loss, or the measurement, of each row under each member's parameters."""
    function = objective.losses if of == "loss" else objective.measurements
    parts = [
        _over_members(lambda theta: function(theta, rows), params[chunk])
        for chunk in member_chunks(len(params), len(rows) * kept_numbers(objective, rows[:2]))
    ]
    return torch.cat(parts).detach()


def member_chunks(members: int, numbers: float) -> Iterator[slice]:
    """Runs of members whose temporaries, `numbers` each, stay about a hundred megabytes."""
    return runs(members, int(max(1, min(members, _NUMBERS // max(1, numbers)))))


def _over_members(function: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
    try:
        return vmap(function)(params)
    except RuntimeError:
        # Operators without a batching rule: one member after another, slow but right. An error
        # that has another cause comes again from here.
        return torch.stack([function(theta) for theta in params])


@dataclass(frozen=True, eq=False)
class WeightedLosses:
    r"""For each member m, the penalised weighted loss that its refit minimises.

    $$ f_m(\theta) = \sum_{k=1}^{n} w_{mk} \, L(z_k, \theta) + \frac{w}{2} \lVert\theta\rVert^2 $$

    Members whose weights leave out much of the data (subsets) are evaluated on the rows that
    they have: `own` holds the positions of those rows, padded with rows of weight zero.

    With a `centre` c and the `slope` t of the mean loss there, the penalty is
    $\frac{w}{2} \lVert\theta - c\rVert^2 - t^\top (\theta - c)$: c is then stationary for all rows
    together whether it is a minimum of their loss or not, and for a c that minimises the penalised
    loss nothing changes.
    """

    objective: Objective
    rows: Rows
    weights: Float[Tensor, "m s"]
    weight_decay: float
    own: Int[Tensor, "m s"] | None = None
    centre: Float[Tensor, " p"] | None = None
    slope: Float[Tensor, " p"] | None = None

    @classmethod
    def of(
        cls,
        objective: Objective,
        rows: Rows,
        weights: Float[Tensor, "m n"],
        weight_decay: float,
        *,
        proximal: bool = False,
    ) -> "WeightedLosses":
        """`proximal`: around `objective.params`."""
        most = int((weights != 0).sum(dim=1).max())
        whole = cls(objective, rows, weights, weight_decay)
        if proximal:
            whole = whole._around(objective.params)
        if most > _SPARSE * len(rows):
            return whole
        own = (weights != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return replace(whole, weights=weights.gather(1, own), own=own)

    def _around(self, centre: Float[Tensor, " p"]) -> "WeightedLosses":
        everyone = self.rows.shares[None].to(centre)
        plain = WeightedLosses(self.objective, self.rows, everyone, 0.0)
        _, slope = plain.value_and_gradient(centre[None])
        return replace(self, centre=centre, slope=slope[0])

    def __getitem__(self, members: slice | Tensor) -> "WeightedLosses":
        own = None if self.own is None else self.own[members]
        return replace(self, weights=self.weights[members], own=own)

    @property
    def chunks(self) -> Iterator[slice]:
        """Members to minimise together."""
        kept = self.weights.shape[1] * kept_numbers(self.objective, self.rows[:2])
        return member_chunks(len(self.weights), max(kept, 64 * self.objective.size))

    @flushed_denormals()
    def value_and_gradient(
        self, theta: Float[Tensor, "m p"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m p"]]:
        """$f_m(θ_m)$ and its gradient, one backward pass for all members."""
        theta = theta.detach().requires_grad_()
        data = (self._losses(theta) * self.weights).sum(dim=1)
        values = data + self._penalty(theta)
        (gradients,) = torch.autograd.grad(values.sum(), theta)
        return values.detach(), gradients

    def _penalty(self, theta: Float[Tensor, "m p"]) -> Float[Tensor, " m"]:
        if self.centre is None or self.slope is None:
            return self.weight_decay / 2 * theta.square().sum(dim=1)
        step = theta - self.centre
        return self.weight_decay / 2 * step.square().sum(dim=1) - step @ self.slope

    def _losses(self, theta: Float[Tensor, "m p"]) -> Float[Tensor, "m s"]:
        losses = self.objective.losses
        if self.own is None:
            return _over_members(lambda point: losses(point, self.rows), theta)
        rows = self.rows.unweighted[self.own]
        try:
            return vmap(lambda point, x, y: losses(point, Rows(x, y)))(theta, rows.x, rows.y)
        except RuntimeError:  # as in _over_members
            pairs = zip(theta, self.own, strict=True)
            return torch.stack([losses(point, self.rows[own]) for point, own in pairs])
