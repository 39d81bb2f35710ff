"""Gradients of the rows of a batch against the gradient of the batch."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.gradients.capture import Pair, pair_norms, pair_sums, squared_norms
from influence_dag.gradients.layouts import DenseLayout, LinearLayout
from influence_dag.gradients.uncaptured import NotCaptured

# Of random sums over rows, relative to the norm of their terms: float64, and float32 and below.
_TOLERANCE = 1e-11, 1e-4
# The same of rows one by one, of whose gradients cancellation may have left few digits.
_DEPENDENCE = 1e-8, 3e-2
# The same of rows from one layer's input and output gradient, where sums over positions cancel.
_LOCAL = 1e-9, 1e-3
_ROUNDING = 30  # units, of the sum over all tensors
# Times what another rounding of θ makes of a sum, of which a network has left rounding alone.
_NOISE, _ROUNDINGS = 10, 3


def check_batch(
    theta: Tensor,
    values: Float[Tensor, " n"],
    blocks: Sequence[LinearLayout | DenseLayout],
    pairs: dict[str, Pair],
    written: dict[str, Tensor],
    *,
    seed: int,
    again: Callable[[Tensor], Tensor] | None = None,
) -> None:
    r"""Compare $\sum_i u_i g_i$ with a backward pass of $\sum_i u_i L_i$, tensor by tensor.

    `values` are the rows' losses with their graph to `theta`; `pairs` are those of the blocks that
    are made of a layer's, `written` the dense gradients of the others. Raises `NotCaptured` for
    layers whose gradients are not what was caught of them, `ModelError` for rows that depend on
    others. `again` are the losses at another θ, by which rounding is told from dependence where a
    network takes most of a gradient back (a norm of what hardly varies, saturated outputs).

    Of one sum over rows those that changed places would be unseen; of a randomly weighted one
    they are not. u is divided by the norms of the rows, so that small ones count like large.
    """
    norms = {name: pair_norms(*pair) for name, pair in pairs.items()}
    of_written = {name: squared_norms(part) for name, part in written.items()}
    none = torch.zeros_like(values.detach(), dtype=torch.float64)
    squares = sum((*norms.values(), *of_written.values()), none)
    _check_finite(squares)
    u = random_weights(squares.sqrt().to(values.dtype), seed)
    weights = u.double().square()
    truth = _gradient(u, values, theta)
    tolerance, dependence, local = (
        each[theta.dtype != torch.float64] for each in (_TOLERANCE, _DEPENDENCE, _LOCAL)
    )
    # What rounding of all that is summed may leave in a tensor whose own gradients are small.
    unit = torch.finfo(theta.dtype)
    rounding = _ROUNDING * unit.eps * _norm(weights, squares)
    rounding += unit.tiny * len(theta)
    strange = set()
    off: dict[DenseLayout, tuple[float, float]] = {}
    for block in blocks:
        name = block.name if isinstance(block, LinearLayout) else block.layer
        if block.name in written and isinstance(block, DenseLayout):
            scale = _norm(weights, of_written[block.name])
            apart = float((u @ written[block.name] - truth[block.start : block.stop]).norm())
            if apart <= (dependence if name is None else local) * scale + rounding:
                continue
            if name is not None:
                strange.add(name)
            else:
                off[block] = apart, scale
        elif name is None or not _is_sum(
            block, u, pairs[name], truth, tolerance * _norm(weights, norms[name]) + rounding
        ):
            strange.add(name)
    if strange:
        raise NotCaptured(strange)
    if off:
        noise = _noise(theta, truth, u, again) if again else torch.zeros_like(truth)
        _check_rows(off, noise)


def _gradient(u: Tensor, values: Tensor, theta: Tensor) -> Float[Tensor, " p"]:
    with torch.enable_grad():
        (found,) = torch.autograd.grad((u * values).sum(), theta, allow_unused=True)
    return torch.zeros_like(theta) if found is None else found


def _noise(
    theta: Tensor, truth: Float[Tensor, " p"], u: Tensor, again: Callable[[Tensor], Tensor]
) -> Float[Tensor, " p"]:
    """By how much the last digits of θ move each entry of a random sum."""
    generator = torch.Generator().manual_seed(len(u))
    moved = torch.zeros_like(truth)
    for _ in range(_ROUNDINGS):
        signs = torch.randn(len(theta), generator=generator, dtype=torch.float64).sign().to(theta)
        near = theta.detach().addcmul(theta.detach(), signs, value=torch.finfo(theta.dtype).eps)
        near.requires_grad_()
        with torch.enable_grad():
            values = again(near)
        moved = torch.maximum(moved, (_gradient(u, values, near) - truth).abs())
    return moved


def _check_finite(squares: Float[Tensor, " n"]) -> None:
    bad = (~squares.isfinite()).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise ModelError(
            f"the gradient of row {row} of a batch is not finite ({len(bad)} of {len(squares)} "
            "rows): the loss has no derivative there (a root or a norm of zeros, a logarithm of 0) "
            "or overflows; look at the row's inputs",
            row=row,
        )


def random_weights(norms: Float[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """Random numbers that fall with the norms of rows, down to what rounding is of the largest."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(len(norms), generator=generator, dtype=torch.float64).to(norms)
    largest, least = norms.max(), torch.finfo(norms.dtype).eps ** 0.5
    return u / (norms / largest).clamp(min=least) * least if largest > 0 else u


def _is_sum(
    block: LinearLayout | DenseLayout, u: Tensor, pair: Pair, truth: Tensor, limit: float
) -> bool:
    weight, bias = pair_sums(u, *pair)
    weight = weight.T if block.transposed else weight
    if isinstance(block, DenseLayout):
        sums = [((block.start, block.stop), bias if block.is_bias else weight)]
    else:
        sums = [(block.weight, weight), (block.bias, bias)]
    return all(
        (values.reshape(-1) - truth[slice(*place)]).norm() <= limit
        for place, values in sums
        if place
    )


def _norm(weights: Float[Tensor, " n"], squares: Float[Tensor, " n"]) -> float:
    """Of a randomly weighted sum's terms."""
    return float((weights * squares).sum().sqrt())


def _check_rows(off: dict[DenseLayout, tuple[float, float]], noise: Float[Tensor, " p"]) -> None:
    for block, (apart, scale) in off.items():
        if not apart <= _NOISE * float(noise[block.start : block.stop].norm()):
            share = apart / scale if scale else apart
            raise ModelError(
                f"the gradients of {block.name!r} row by row are not those in a batch (their "
                f"random sum differs by {share:.1e}): the loss of a row depends on the other "
                "rows of its batch; every row has to stand for itself"
            )
