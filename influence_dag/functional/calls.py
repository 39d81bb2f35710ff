"""Influences in memory, from a module, a loss and data loaders, in a few calls."""

from collections.abc import Iterable
from enum import Enum
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.functional import scores
from influence_dag.functional.arguments import choice
from influence_dag.functional.columns import at_positions, columns_of, up_weighted
from influence_dag.functional.inversion import Damping, InverseHvpResult, Inversion
from influence_dag.functional.loaders import read_rows
from influence_dag.functional.sizes import check_fits
from influence_dag.functional.usable import usable_device, usable_module
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.influence.points import perturbation_point
from influence_dag.influence.positions import position_gradients, positions_of, positions_of_test
from influence_dag.losses import LossFunction, per_sample_loss, reduced_loss
from influence_dag.objective.objective import (
    Objective,
    Rows,
    flushed_denormals,
    without_denormal_entries,
)
from influence_dag.solvers.blocks import Blocks, parameter_blocks, split_by_block
from influence_dag.structures import described
from influence_dag.study.torch_modes import plain_modes
from influence_dag.texts import a_kind

Loader = Iterable[tuple[Any, Any]]


class TorchTwiceDifferentiable:
    """A trained module with its loss, on a device.

    `loss` is a name (`"cross_entropy"`, `"mse"`, `"bce_with_logits"`, `"next_token"`), a torch loss
    that reduces a batch to one number (`F.cross_entropy`, `nn.MSELoss()`), or a function
    `(output, target) -> (batch,)`. With `measurement`, a function of the same kind, influences
    are on that value of the test rows instead of on their loss.

    The module is moved to `device`; its mode is left as it is, and a module in train mode whose
    loss is random or depends on the batch is refused. Parameters are read at each call.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        device: torch.device | str = "cpu",
        *,
        measurement: LossFunction | None = None,
    ):
        model = usable_module(model)
        if not isinstance(loss, str) and not callable(loss):
            raise TypeError(
                f"loss is {a_kind(loss)}; a name or a function (output, target) is wanted"
            )
        self.device = usable_device(device)
        self.model = model.to(self.device)
        self.loss = loss
        self.measurement = measurement

    @property
    def objective(self) -> Objective:
        """The loss as a function of the parameters, at their present values."""
        loss = self.loss
        of_rows = per_sample_loss(loss) if isinstance(loss, str) else reduced_loss(loss)
        measurement = self.measurement and reduced_loss(self.measurement)
        return Objective(self.model, of_rows, measurement=measurement)

    @property
    def num_params(self) -> int:
        """The number of trainable parameters."""
        return self.objective.size


@plain_modes()
@flushed_denormals()
def compute_influences(
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    test_data: Loader | None = None,
    input_data: Loader | None = None,
    *,
    influence_type: str | Enum = "up",
    inversion_method: str | Enum = "direct",
    hessian_regularization: Damping = 0.0,
    blocks: Blocks = "full",
    per_block: bool = False,
    wrt: str | None = None,
    positions: Literal["train", "test", "both"] | None = None,
    **settings: Any,
) -> Any:
    r"""Influence of each training row on the loss of each test row.

    $$ I_{ji} = \nabla L(z_{test,j})^\top (H + \lambda I)^{-1} \nabla L(z_i), \qquad
       P_{jif} = \partial I_{ji} / \partial x_{if} $$

    `influence_type="up"` gives I, `(test, train)`; `"perturbation"` gives P,
    `(test, train, *features)` (a tuple or dict of such for a tuple or dict of inputs). Positive
    means helpful: fitting again without row i changes test loss j by about $+I_{ji}/n$; moving
    feature f of row i by ε changes it by about $-ε P_{jif}/n$. Entries are not divided by n.

    `hessian_regularization` is λ, or `"auto"`: the mean size of the curvature's eigenvalues.
    `inversion_method`, `blocks` and further `settings` are those of
    `solve_hvp`. Without `test_data` the training rows take its part; with `input_data` the
    influences are those of its rows, while H stays that of `training_data`. `per_block` gives the
    share of each block of parameters instead, by name; shares add up to the influences.
    Where the loss is one of positions (tokens), `positions` asks for those of the training rows,
    `(test, train, *positions)`, of the test rows, `(test, *positions, train)`, or of both: terms
    that add up to the influences of the rows, 0 where a target is ignored (`position_influences`).
    A perturbation is of the inputs, or of the output of the module named `wrt`: an embedding,
    whose inputs, tokens, have no derivative.
    """
    kind = choice("influence_type", influence_type, ("up", "perturbation"))
    if wrt is not None and kind == "up":
        raise ValueError(f"wrt={wrt!r} is for influence_type='perturbation'")
    of = ("train", "test", "both")
    at = None if positions is None else choice("positions", positions, of)
    if at and kind == "perturbation":
        raise ValueError("positions are of influence_type='up'")
    inversion = Inversion.of(inversion_method, hessian_regularization, blocks=blocks, **settings)
    objective = differentiable_model.objective
    labelling = test_data is None or input_data is None  # an axis by the training rows
    train = _rows(training_data, objective, "training_data", ordered=labelling)
    test = train if test_data is None else _rows(test_data, objective, "test_data")
    rows = train if input_data is None else _rows(input_data, objective, "input_data")
    cut = parameter_blocks(objective.slices, blocks) if per_block else {}
    if kind == "perturbation":
        point = perturbation_point(objective, rows, wrt)  # raises before anything is solved
        check_fits(point, rows, len(test), shares=max(1, len(cut)))
    if at in ("train", "both"):
        positions_of(objective, rows)  # raises before anything is solved
    at_test = positions_of_test(objective, test) if at in ("test", "both") else ()
    batch = _batch_size(training_data)
    if kind == "up" and not at and not per_block:
        up, layout = scores.kernel(inversion, objective, train, test, rows=len(rows), batch=batch)
        if input_data is not None:
            objective.check(rows)
        return columns_of(objective, rows, up, layout=layout)
    factors, _ = inversion.factors(
        objective,
        train,
        test,
        batch=batch,
        gradients=position_gradients if at_test else None,
        told=False,
    )
    without_denormal_entries(factors)
    if input_data is not None:
        objective.check(rows)
    kernel = up_weighted
    if at in ("train", "both"):
        kernel = at_positions
    elif kind == "perturbation":
        kernel = partial(perturbation_influences, wrt=wrt)

    def found(factors: Tensor) -> Any:
        values = kernel(objective, factors, rows)
        return values.unflatten(0, (len(test), *at_test)) if at_test else values

    if not per_block:
        return found(factors)
    return {name: found(share) for name, share in split_by_block(factors, cut).items()}


@plain_modes()
@flushed_denormals()
def compute_influence_factors(
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    test_data: Loader | None = None,
    *,
    inversion_method: str | Enum = "direct",
    hessian_regularization: Damping = 0.0,
    **settings: Any,
) -> InverseHvpResult:
    r"""$s_j = (H + \lambda I)^{-1} \nabla L(z_{test,j})$ of each test row, `(test, p)`, and info.

    Without `test_data` the training rows take its part. See `solve_hvp` for the methods, their
    settings, their info and what they raise; `ModelError` says why a model cannot be used.
    """
    inversion = Inversion.of(inversion_method, hessian_regularization, **settings)
    objective = differentiable_model.objective
    train = _rows(training_data, objective, "training_data", ordered=test_data is None)
    test = train if test_data is None else _rows(test_data, objective, "test_data")
    return inversion.factors(objective, train, test, batch=_batch_size(training_data))


@plain_modes()
@flushed_denormals()
def solve_hvp(
    inversion_method: str | Enum,
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    b: Float[Tensor, "k p"] | Float[Tensor, " p"],
    *,
    hessian_perturbation: Damping = 0.0,
    **settings: Any,
) -> InverseHvpResult:
    r"""Rows x with $(H + \lambda I)\, x = b$, H the Hessian of the mean training loss.

    `inversion_method` is a name in `influence_dag.solvers.METHODS`, `hessian_perturbation` is λ,
    the settings are the fields of that method; also accepted are `x0` (cg), `h0` (lissa),
    `rank_estimate` and `eigen_computation_on_gpu` (arnoldi). `curvature="gauss_newton"` takes the
    generalised Gauss-Newton matrix for H. `blocks` (`"full"`, `"layer"` or lists of parameter
    names) leaves out what couples blocks; `block_damping` is λ of single blocks by name, the others
    have `hessian_perturbation`.

    Without a damping, eigenvalues that are zero to rounding are left out: x is the solution of
    least norm, and a b outside the range is refused by `direct` and `nystroem` and missed by `cg`.
    `hessian_perturbation="auto"` takes $\lambda = \frac1p \sum_i |\mu_i|$ (trace / p of a
    Gauss-Newton matrix or a Fisher), told in `damping` and `damping_reason` of the info. Where a
    method is expected to multiply oftener than the matrix costs, the matrix is formed (up to 4,096
    parameters); else `lissa` draws a batch of the loader's size for each step.

    Info (of several blocks: `block.key`, in the solvers' own names): `hessian`, `rank` (direct);
    `niter`, `converged` (also `optimal`), `gamma`, one a row (cg); `converged`,
    `max_perc_residual`, `mean_perc_residual`, percentages (lissa); `eigenvalues`, `eigenvectors`
    (arnoldi); the relative `residual` of each row where it is known.

    Raises `ValueError` for an unknown method or a value that a setting cannot have, `TypeError` for
    a setting that the method does not have, `IndefiniteError` when $H + \lambda I$ is not positive
    definite (naming a damping that would do) or singular with b outside its range, `ModelError` for
    a model or loss that cannot be used. Rows of `cg` and `lissa` that miss the tolerance are
    returned as they are, with a warning and `converged` false; `on_failure="raise"` makes that a
    `NotConvergedError`.
    """
    inversion = Inversion.of(inversion_method, hessian_perturbation, **settings)
    objective = differentiable_model.objective
    rhs = _right_hand_sides(b, objective)
    train = _rows(training_data, objective, "training_data", ordered=False)
    x, info = inversion.solve(objective, train, rhs, batch=_batch_size(training_data))
    return InverseHvpResult(x.reshape(b.shape), info)


def _rows(data: Loader, objective: Objective, what: str, *, ordered: bool = True) -> Rows:
    return read_rows(data, what=what, ordered=ordered).to(objective.device, objective.dtype)


def _batch_size(data: Loader) -> int | None:
    """Rows that a loader draws at once, where it says so."""
    size = getattr(data, "batch_size", None)
    return size if isinstance(size, int) else None


def _right_hand_sides(b: Any, objective: Objective) -> Float[Tensor, "k p"]:
    if not isinstance(b, Tensor):
        raise TypeError(f"b is {a_kind(b)}; a tensor (k, {objective.size}) is wanted")
    if b.ndim not in (1, 2) or b.shape[-1] != objective.size:
        raise ValueError(
            f"b has shape {tuple(b.shape)}; the model has {objective.size} trainable parameters, "
            f"so b is (k, {objective.size}) or ({objective.size},)"
        )
    if b.is_complex():
        raise TypeError(
            f"b is {described(b)}; real numbers are wanted: solve for b.real and b.imag"
        )
    rhs = torch.atleast_2d(b.detach()).to(objective.device, objective.dtype)
    if not rhs.isfinite().all():
        beyond = f" in the model's {rhs.dtype}" if b.isfinite().all() else ""
        raise ValueError(f"b has entries that are not finite{beyond}; no x solves that")
    return rhs
