"""Influences in memory, from a module, a loss and data loaders, in a few calls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.curvature import Curvature, DenseCurvature, GaussNewton, Hessian
from influence_dag.gradients import GradientLayout, per_sample_gradients, with_layout
from influence_dag.influence import influences, perturbation_influences
from influence_dag.losses import LossFunction, per_sample_loss, reduced_loss
from influence_dag.objective import Objective, Rows
from influence_dag.perturbation_points import perturbation_point
from influence_dag.solvers import METHODS, Factorization, Method, Solution, build
from influence_dag.solvers.blocks import Blocks, Blockwise, parameter_blocks, split_by_block

Loader = Iterable[tuple[Any, Any]]

_TRAINING_ROWS = 4096  # whose gradients are held at once

# What other libraries call the settings of a method, and its start.
_SYNONYMS = {"arnoldi": {"rank_estimate": "rank", "eigen_computation_on_gpu": "on_device"}}
_START = {"cg": "x0", "lissa": "h0"}
_CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}


class InverseHvpResult(NamedTuple):
    r"""Rows `x` with $(H + \lambda I)\, x = b$, and what the method knows about them."""

    x: Tensor
    info: dict[str, Any]


class TorchTwiceDifferentiable:
    """A trained module with its loss, on a device.

    `loss` is a name (`"cross_entropy"`, `"mse"`, `"bce_with_logits"`), a torch loss that reduces
    a batch to one number (`F.cross_entropy`, `nn.MSELoss()`), or a function
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
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.loss = loss.to(self.device) if isinstance(loss, nn.Module) else loss
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


def compute_influences(
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    test_data: Loader | None = None,
    input_data: Loader | None = None,
    *,
    influence_type: str | Enum = "up",
    inversion_method: str | Enum = "direct",
    hessian_regularization: float = 0.0,
    blocks: Blocks = "full",
    per_block: bool = False,
    wrt: str | None = None,
    **settings: Any,
) -> Any:
    r"""Influence of each training row on the loss of each test row.

    $$ I_{ji} = \nabla L(z_{test,j})^\top (H + \lambda I)^{-1} \nabla L(z_i), \qquad
       P_{jif} = \partial I_{ji} / \partial x_{if} $$

    `influence_type="up"` gives I, `(test, train)`; `"perturbation"` gives P,
    `(test, train, *features)` (a tuple or dict of such for a tuple or dict of inputs). Positive
    means helpful: fitting again without row i changes test loss j by about $+I_{ji}/n$; moving
    feature f of row i by ε changes it by about $-ε P_{jif}/n$. Entries are not divided by n.

    `hessian_regularization` is λ. `inversion_method`, `blocks` and further `settings` are those of
    `solve_hvp`. Without `test_data` the training rows take its part; with `input_data` the
    influences are those of its rows, while H stays that of `training_data`. `per_block` gives the
    share of each block of parameters instead, by name; shares add up to the influences.
    A perturbation is of the inputs, or of the output of the module named `wrt`: an embedding,
    whose inputs, tokens, have no derivative.
    """
    kind = _choice("influence_type", influence_type, ("up", "perturbation"))
    if wrt is not None and kind == "up":
        raise ValueError(f"wrt={wrt!r} is for influence_type='perturbation'")
    inversion = _Inversion.of(inversion_method, hessian_regularization, blocks=blocks, **settings)
    objective = differentiable_model.objective
    train = _rows(training_data, objective)
    test = train if test_data is None else _rows(test_data, objective)
    rows = train if input_data is None else _rows(input_data, objective)
    if kind == "perturbation":
        perturbation_point(objective, rows, wrt)  # raises before anything is solved
    factors = inversion.factors(objective, train, test).x
    if input_data is not None:
        objective.check(rows)
    kernel = partial(perturbation_influences, wrt=wrt) if kind == "perturbation" else _up_weighted
    if not per_block:
        return kernel(objective, factors, rows)
    shares = split_by_block(factors, parameter_blocks(objective.slices, blocks))
    return {name: kernel(objective, share, rows) for name, share in shares.items()}


def _up_weighted(objective: Objective, factors: Tensor, rows: Rows) -> Tensor:
    def columns(layout: GradientLayout) -> Tensor:
        parts = [
            influences(factors, per_sample_gradients(objective, batch, layout=layout))
            for batch in rows.batches(_TRAINING_ROWS)
        ]
        return torch.cat(parts, dim=1)

    return with_layout(objective, rows, columns)


def compute_influence_factors(
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    test_data: Loader | None = None,
    *,
    inversion_method: str | Enum = "direct",
    hessian_regularization: float = 0.0,
    **settings: Any,
) -> InverseHvpResult:
    r"""$s_j = (H + \lambda I)^{-1} \nabla L(z_{test,j})$ of each test row, `(test, p)`, and info.

    Without `test_data` the training rows take its part. See `solve_hvp` for the methods, their
    settings, their info and what they raise; `ModelError` says why a model cannot be used.
    """
    inversion = _Inversion.of(inversion_method, hessian_regularization, **settings)
    objective = differentiable_model.objective
    train = _rows(training_data, objective)
    test = train if test_data is None else _rows(test_data, objective)
    return inversion.factors(objective, train, test)


def solve_hvp(
    inversion_method: str | Enum,
    differentiable_model: TorchTwiceDifferentiable,
    training_data: Loader,
    b: Float[Tensor, "k p"] | Float[Tensor, " p"],
    *,
    hessian_perturbation: float = 0.0,
    **settings: Any,
) -> InverseHvpResult:
    r"""Rows x with $(H + \lambda I)\, x = b$, H the Hessian of the mean training loss.

    `inversion_method` is a name in `influence_dag.solvers.METHODS`, `hessian_perturbation` is λ,
    the settings are the fields of that method; also accepted are `x0` (cg), `h0` (lissa),
    `rank_estimate` and `eigen_computation_on_gpu` (arnoldi). `curvature="gauss_newton"` takes the
    generalised Gauss-Newton matrix for H. `blocks` (`"full"`, `"layer"` or lists of parameter
    names) leaves out what couples blocks; `block_damping` is λ of single blocks by name, the others
    have `hessian_perturbation`.

    Info (of several blocks: `block.key`, in the solvers' own names): `hessian` (direct); `niter`,
    `optimal`, `gamma`, one a row (cg); `max_perc_residual`, `mean_perc_residual` (lissa);
    `eigenvalues`, `eigenvectors` (arnoldi).

    Raises `ValueError` for an unknown method, `TypeError` for a setting that it does not have,
    `IndefiniteError` when $H + \lambda I$ is not positive definite (naming a damping that would
    do), `NotConvergedError` for rows that miss the tolerance, `ModelError` for a model or loss
    that cannot be used.
    """
    inversion = _Inversion.of(inversion_method, hessian_perturbation, **settings)
    objective = differentiable_model.objective
    rhs = _right_hand_sides(b, objective)
    x, info = inversion.solve(objective, _rows(training_data, objective), rhs)
    return InverseHvpResult(x.reshape(b.shape), info)


@dataclass(frozen=True, eq=False)
class _Inversion:
    """Which inverse is meant: what the arguments say, checked before any work."""

    name: str
    method: Method
    damping: float
    curvature: str
    blocks: Blocks
    block_damping: Mapping[str, float]
    start: Tensor | None

    @classmethod
    def of(
        cls,
        inversion_method: str | Enum,
        damping: float,
        *,
        hessian_perturbation: float | None = None,
        curvature: str = "hessian",
        blocks: Blocks = "full",
        block_damping: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> "_Inversion":
        name = _choice("inversion_method", inversion_method, tuple(METHODS))
        kind = _choice("curvature", curvature, tuple(_CURVATURES))
        damping = damping if hessian_perturbation is None else hessian_perturbation
        start = _start(name, settings)
        method = _method(name, None if block_damping else damping, settings)
        return cls(name, method, damping, kind, blocks, block_damping or {}, start)

    def factors(self, objective: Objective, train: Rows, test: Rows) -> InverseHvpResult:
        """Solve for the gradients of the test rows."""
        objective.check(test)
        gradients = per_sample_gradients(objective, test, of="measurement").dense()
        return self.solve(objective, train, gradients)

    def solve(self, objective: Objective, rows: Rows, rhs: Tensor) -> InverseHvpResult:
        """Solve with the curvature of these training rows."""
        objective.check(rows)
        operator: Curvature = _CURVATURES[self.curvature](objective, rows)
        if self.name == "direct":
            operator = DenseCurvature(operator.dense())
        factorization = self._on_blocks(objective).factorize(operator)
        solution = factorization.solve(rhs, damping=self.damping, x0=self.start)
        info = _info(self.name, operator, factorization, solution, rhs)
        return InverseHvpResult(solution.x, info)

    def _on_blocks(self, objective: Objective) -> Method:
        if self.blocks == "full" and not self.block_damping:
            return self.method
        positions = parameter_blocks(objective.slices, self.blocks)
        return Blockwise(method=self.method, blocks=positions, dampings=self.block_damping)


def _rows(data: Loader, objective: Objective) -> Rows:
    return Rows.from_loader(data).to(objective.device, objective.dtype)


def _choice(argument: str, value: Any, accepted: tuple[str, ...]) -> str:
    """The name, whether written as a string of any case or as a member of an enumeration."""
    name = str(getattr(value, "value", value)).lower()
    if name not in accepted:
        raise ValueError(f"{argument}={value!r} is unknown; choose one of {', '.join(accepted)}")
    return name


def _method(name: str, damping: float | None, settings: dict[str, Any]) -> Method:
    synonyms = _SYNONYMS.get(name, {})
    settings = {synonyms.get(key, key): value for key, value in settings.items()}
    if name == "direct":
        settings.setdefault("damping", damping)
    return build(name, settings)


def _right_hand_sides(b: Tensor, objective: Objective) -> Float[Tensor, "k p"]:
    if b.ndim not in (1, 2) or b.shape[-1] != objective.size:
        raise ValueError(
            f"b has shape {tuple(b.shape)}; the model has {objective.size} trainable parameters, "
            f"so b is (k, {objective.size}) or ({objective.size},)"
        )
    return torch.atleast_2d(b).to(objective.device, objective.dtype)


def _start(name: str, settings: dict[str, Any]) -> Tensor | None:
    """The first guess for x among the settings, if there is one."""
    start = settings.pop(_START[name], None) if name in _START else None
    if start is None:
        return None
    if name == "lissa":
        if settings.get("scale") is None:
            raise ValueError("h0 is a first guess for scale * x: give scale along with it")
        start = start / settings["scale"]
    return torch.atleast_2d(start)


def _info(
    name: str, curvature: Curvature, factorization: Factorization, solution: Solution, rhs: Tensor
) -> dict[str, Any]:
    """What is known about a solve, under the names that other libraries use."""
    info = dict(solution.info)
    if name == "direct":
        return info | {"hessian": curvature.dense()}
    if name == "arnoldi":
        return info | factorization.tensors()
    if name == "cg" and "converged" in info:
        info["optimal"] = info.pop("converged")
        info["gamma"] = info.pop("residual") * rhs.norm(dim=1)
    return info
