"""Perturbation influences: derivatives of up-weighting influences in the training inputs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from influence_dag.curvature.layered import LayeredNetwork, not_layered
from influence_dag.errors import ModelError, check_known
from influence_dag.gradients.checks import random_weights
from influence_dag.gradients.memory import fresh
from influence_dag.gradients.products import runs
from influence_dag.influence.differences import check_input_derivatives
from influence_dag.influence.layered import layered_products
from influence_dag.influence.points import InputPoint, Point, perturbation_point
from influence_dag.objective.footprint import saved_numbers
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.objective.twice_differentiable import NOT_FOLLOWED, no_derivative, plain_gradient
from influence_dag.structures import map_tensors, tensors_of

Route = Literal["auto", "layered", "autograd", "jacobian"]

_NUMBERS = 2**24  # held at once by one differentiation
# Of random sums over factors, relative to the norm of a row's terms: float64, and below.
_TOLERANCE, _LOOSE = {torch.float64: 1e-9}, 1e-3
_FEW = 8  # factors from which the size of a row's terms is taken
_SMALL_ROWS = 1e-3  # of the largest row's terms: what rounding may amount to in a small row's
_FEW_NUMBERS = 2**18  # of a Jacobian: milliseconds, by plain autograd a few more
_SMALL = 2048  # parameters × features up to which the mixed Jacobian is the fastest


@flushed_denormals()
def perturbation_influences(
    objective: Objective,
    factors: Float[Tensor, "k p"],
    rows: Rows,
    *,
    wrt: str | None = None,
    route: Route = "auto",
    chunk: int = 32,
) -> Any:
    r"""Influence of each feature of each training row on each test loss, `(k, n, *features)`.

    $$ P_{jif} = \frac{\partial}{\partial x_{if}} \, s_j^\top \nabla_\theta L((x_i, y_i), \theta) $$

    Moving $x_i$ by $\varepsilon$ along feature f and fitting again changes test loss j by about
    $-\varepsilon P / n$: a positive entry means that more of the feature lowers the test loss.
    Per unit of the model's input; not divided by n. (Koh & Liang 2017, eq. 5.)

    A tuple or dict of inputs gives a tuple or dict of results; integer inputs (tokens) have no
    derivative and are left out of a dict, None in a tuple. With `wrt`, the name of a module, the
    derivative is in that module's output for the training row, $\partial/\partial h_{if}$ with
    $h_i$ an embedding's vectors, say: `(k, n, *output)`. `chunk` factors are differentiated at a
    time: it bounds memory and changes no answer.

    Raises `ModelError` when there is nothing to differentiate in, naming what there is, and where
    a part of the model takes its inputs without their derivative.
    """
    check_known("route", route, get_args(Route))
    point = perturbation_point(objective, rows, wrt)
    if wrt is not None and route not in ("auto", "autograd"):
        raise ModelError(f"route={route!r} takes inputs; with wrt={wrt!r} use route='autograd'")
    found = None if wrt else _by_a_short_cut(objective, factors, rows, route, chunk)
    if found is not None and _confirmed(objective, factors, rows, found):
        check_input_derivatives(objective, factors, rows, wrt)
        return found
    is_other = found is not None
    del found  # as large as what follows
    found = _by_autograd(objective, factors, rows, chunk, point)
    if wrt is not None:
        _check_order(objective, factors, rows, point, wrt)
    check_input_derivatives(objective, factors, rows, wrt)
    _check_finite(found)
    if is_other:
        _tell_of_other_rows(objective)
    return found


def _tell_of_other_rows(objective: Objective) -> None:
    warnings.warn(
        f"{type(objective.module).__name__} is not for all rows what it is for the first: their "
        "perturbation influences are differentiated by autograd",
        RuntimeWarning,
        stacklevel=4,
    )


def _by_a_short_cut(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows, route: Route, chunk: int
) -> Tensor | None:
    """The products by a route for some models only; None where there is none. To be confirmed."""
    if route == "jacobian":
        return _by_jacobian(objective, factors, rows)
    if route == "auto" and _is_small(objective, rows):
        # An operator without a batching rule (some recurrent kernels) is no reason to fail.
        with suppress(*NOT_FOLLOWED):
            return _by_jacobian(objective, factors, rows)
    network = LayeredNetwork.of(objective, rows) if route in ("auto", "layered") else None
    if network is None and route == "layered":
        raise not_layered(objective)
    with suppress(*NOT_FOLLOWED):
        return network and layered_products(network, factors, rows, chunk=chunk)
    return None


def _confirmed(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows, found: Float[Tensor, "k n ..."]
) -> bool:
    """Whether autograd says the same of every row, along a random combination of the factors.

    The products are then finite, as its own are.
    """
    u = random_weights(factors.norm(dim=1), len(rows))
    point = InputPoint(objective, rows)
    truth = _flat(_by_autograd(objective, (u @ factors)[None], rows, 1, point))[0]
    flat = _flat(found)
    difference = (torch.tensordot(u, flat, dims=1) - truth).norm(dim=1)
    some = slice(None, None, max(1, len(u) // _FEW))
    terms = torch.einsum("k,knf->nf", u[some].square(), flat[some].square())
    scale = (terms.sum(1) * len(u) / len(u[some])).sqrt() + truth.norm(dim=1)
    tolerance = _TOLERANCE.get(objective.dtype, _LOOSE)
    within = difference <= tolerance * (scale + _SMALL_ROWS * scale.max())
    return bool((within & difference.isfinite()).all())


def _check_order(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows, point: Point, wrt: str
) -> None:
    """Raise `ModelError` where a module sees its rows in another order than they come in.

    What is found of a random combination of the factors has to follow the rows when they change
    places: of a module within a sort it stays, or mixes.
    """
    u = random_weights(factors.norm(dim=1), len(rows))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    order = (order if len(rows) > 2 else order.flip(0)).to(factors.device)  # of two, as they were
    first, second = (
        _flat(_by_autograd(objective, (u @ factors)[None], batch, 1, point))[0]
        for batch in (rows, rows[order])
    )
    tolerance = _TOLERANCE.get(objective.dtype, _LOOSE)
    if not (second - first[order]).norm() <= 10 * tolerance * first.norm():
        raise ModelError(
            f"module {wrt!r} sees its rows in another order than the model is given them (sorted, "
            "packed or routed), so derivatives in its output cannot be told apart by row; name a "
            "module before or after that"
        )


def _flat(products: Float[Tensor, "k n *features"]) -> Float[Tensor, "k n f"]:
    return products.reshape(*products.shape[:2], -1)


def _check_finite(found: Any) -> None:
    for leaf in tensors_of(found):
        bad = (~_flat(leaf).sum(0).isfinite()).any(1).nonzero().flatten()
        if len(bad):
            row = int(bad[0])
            raise ModelError(
                f"the perturbation influences of training row {row} are not finite ({len(bad)} of "
                f"{leaf.shape[1]} rows): the model has no derivative in its inputs there (a root "
                "or a norm of zeros, as of LPPool2d), or it overflows; move the row off that "
                "point, or ask for the derivative in a later module's output (wrt)",
                row=row,
            )


def _is_small(objective: Objective, rows: Rows) -> bool:
    # The Jacobian is 2·p·features operations a pair at the speed of matrix products, the others
    # about 8·p in small steps: measured, they meet between 2,000 and 4,000.
    return isinstance(rows.x, Tensor) and objective.size * rows.x[0].numel() <= _SMALL


# Any model: reverse over reverse --------------------------------------------------------------


def _by_autograd(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows, chunk: int, point: Point
) -> Any:
    """One backward pass through the batch's gradient for each factor, `chunk` at a time."""
    one = point.leaves(rows[:1])
    results = [fresh((len(factors), len(rows), *leaf.shape[1:]), factors) for leaf in one]
    # A row has the results, two passes through the graph and the gradients that run along it.
    kept = max(sum(leaf.numel() for leaf in one), 3 * sum(saved_numbers(objective, rows)))
    for batch, block in _blocks(rows, chunk * kept):
        pull_back = _mixed_products(objective, batch, point, alone=len(factors) == 1)
        for some in runs(len(factors), chunk):
            for result, values in zip(results, pull_back(factors[some]), strict=True):
                result[some, block] = values.detach()  # others' tensors are constants
    return point.structured(rows, results)


def _mixed_products(
    objective: Objective, rows: Rows, point: Point, *, alone: bool = False
) -> Callable[[Float[Tensor, "k p"]], tuple[Tensor, ...]]:
    """The function s ↦ ∂/∂x (s · ∇θ Σ L) for the tensors x of the point, recorded once.

    Of one factor `alone` by plain autograd first: torch.func's first use in a process imports a
    compiler, 1 CPU s.
    """

    def total(theta: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
        return rows.weighted(point.losses(objective, theta, rows, list(leaves))).sum()

    def batched() -> Callable[[Tensor], tuple[Tensor, ...]]:
        _, pull_back, *_ = vjp(lambda *x: grad(total)(objective.params, x), *point.leaves(rows))
        products = vmap(pull_back)
        products(objective.params[None])  # some operators fail when they are asked only
        return products

    def plain() -> Callable[[Tensor], tuple[Tensor, ...]]:
        return _plain_mixed_products(objective, point.leaves(rows), total)

    first, second = (plain, batched) if alone else (batched, plain)
    with suppress(*NOT_FOLLOWED):
        return first()
    try:
        return second()
    except NOT_FOLLOWED as error:
        raise no_derivative("mixed second", objective, error) from error


def _plain_mixed_products(
    objective: Objective, leaves: list[Tensor], total: Callable[..., Tensor]
) -> Callable[[Float[Tensor, "k p"]], tuple[Tensor, ...]]:
    """The same by autograd as it stands, a factor at a time; torch.func may not follow."""
    theta = objective.params.clone().requires_grad_()
    points = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    with torch.enable_grad():
        gradient = plain_gradient(total(theta, points), theta, create_graph=True)

    def products(factors: Float[Tensor, "k p"]) -> tuple[Tensor, ...]:
        each = [[plain_gradient(gradient, x, factor) for x in points] for factor in factors]
        return tuple(map(torch.stack, zip(*each, strict=True)))

    products(objective.params[None])
    return products


# Small models: the mixed Jacobian -------------------------------------------------------------


def _by_jacobian(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows
) -> Float[Tensor, "k n *features"]:
    """∂²L/∂x∂θ of each row, (features, p), one backward pass a feature; then one product."""
    if not isinstance(rows.x, Tensor):
        raise ModelError("route='jacobian' is for a single input tensor; use route='autograd'")

    result = fresh((len(factors), *rows.x.shape), factors)
    for batch, block in _blocks(rows, objective.size * rows.x[0].numel()):
        jacobian = _mixed_jacobian(objective, batch)
        products = (factors @ jacobian.flatten(0, -2).T).view(-1, *batch.x.shape)
        result[:, block] = batch.weighted(products.detach().transpose(0, 1)).transpose(0, 1)
    return result


def _mixed_jacobian(objective: Objective, rows: Rows) -> Float[Tensor, "n ... p"]:
    """That of each row at a copy of θ of its own.

    Of few numbers a feature at a time by plain autograd: torch.func's first use in a process
    imports a compiler, 1 CPU s.
    """

    def loss(theta: Tensor, x: Tensor, y: Any) -> Tensor:
        one = (map_tensors(lambda leaf: leaf.unsqueeze(0), part) for part in (x, y))
        return objective.losses(theta, Rows(*one)).sum()

    if rows.x.numel() * objective.size > _FEW_NUMBERS:
        mixed = vmap(jacrev(grad(loss, argnums=1)), in_dims=(None, 0, 0))
        return mixed(objective.params, rows.x, rows.y)
    thetas = objective.params.repeat(len(rows), 1).requires_grad_()
    x = rows.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        gradient = plain_gradient(vmap(loss)(thetas, x, rows.y).sum(), x, create_graph=True)
        features = gradient.reshape(len(x), -1).unbind(1)
    each = [plain_gradient(feature.sum(), thetas) for feature in features]
    return torch.stack(each, 1).view(*x.shape, -1)


def _blocks(rows: Rows, numbers: int) -> Iterator[tuple[Rows, slice]]:
    """The rows in blocks for which `numbers` a row fit into what is held at once."""
    for block in runs(len(rows), max(1, _NUMBERS // numbers)):
        yield rows[block], block
