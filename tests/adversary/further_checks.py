"""What a call may ask for beside the plain answer, each by its formula from single rows."""

from unittest import mock

import torch
from adversary import losses, oracle
from adversary.definitions import ekfac_error
from adversary.measures import by_pair, by_row, floor_of, worst

import influence_dag as idag
from influence_dag.functional import inversion

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


def further(checks):
    """(name, what gives the error, its bound, whether it may be refused) of each."""
    case, truth = checks.case, checks.truth
    values, lam = truth.values, automatic(truth)
    if lam > 0:
        at_auto = checks.exact_at((float(values.abs().max()) + lam) / lam)
        yield "automatic damping", lambda: automatic_error(checks, lam), at_auto, False
    identity = checks.rounding + checks.cancelled()
    yield "identity by blocks", lambda: shares_error(checks, "identity", {}), identity, False
    if case.loss_family in losses.POSITIONS and not case.measurement:
        for at in ("train", "test", "both"):
            yield (
                f"positions of {at}",
                lambda at=at: positions_error(checks, at),
                checks.exact,
                True,
            )
    if not truth.definite or truth.damping == 0:
        return
    yield "blocks with a damping", lambda: blocks_error(checks), 10 * checks.exact, False
    loose = checks.exact + 2 * _TOLERANCE[case.dtype] * truth.condition
    if loose < 0.01:
        for name in ("none", "jacobi", "nystroem", "ekfac"):
            convex = name != "ekfac" or case.loss.convex
            for search in ("own", "shared") if convex else ():
                settings = {"preconditioner": name, "search": search}
                yield f"cg, {name}, {search}", lambda s=settings: cg_error(checks, s), loose, False
    if truth.condition < 50:
        bound = 1e-4 * truth.condition + checks.exact
        yield "lissa, unformed", lambda: lissa_error(checks), bound, False
    size, pairs = len(values), eigenpairs(truth)
    for rank in range(1, size):
        gap = float(pairs[0].abs()[rank - 1] - pairs[0].abs()[rank]) / float(values.abs().max())
        if gap > 0.05 and (rank == 1 or checks.draw.chance(0.2)):
            bound = (1e-4 + 20 * checks.exact) / gap
            for rest in ("drop", "damping"):
                yield (
                    f"arnoldi of rank {rank}, {rest}",
                    lambda r=rank, c=rest: low_rank_error(checks, r, c), bound, False,
                )  # fmt: skip
            break


def automatic(truth):
    """The mean size of the eigenvalues; of a Gauss-Newton matrix the trace over p."""
    if truth.curvature == "hessian":
        return float(truth.values.abs().mean())
    return max(float(truth.values.mean()), 0.0)


def automatic_error(checks, lam):
    """λ, and what is solved with it: of indefinite matrices by the size of eigenvalues."""
    truth = checks.truth
    found = idag.compute_influence_factors(
        checks.wrapped, checks.train, checks.test, hessian_regularization="auto",
        curvature=truth.curvature, on_indefinite="absolute",
    )  # fmt: skip
    values, V = torch.linalg.eigh((truth.matrix + truth.matrix.T) / 2)
    rhs = truth.test.gradients
    expected = ((rhs @ V) / (values.abs() + lam)) @ V.T
    return max(abs(found.info["damping"] / lam - 1), by_row(found.x, expected))


def names_of(checks):
    named = checks.case.module(torch.float64).named_parameters()
    return {name: p.numel() for name, p in named if p.requires_grad}


def cut(checks):
    """The first parameter and the others, as lists of names and as places in θ."""
    sizes = names_of(checks)
    names, first = list(sizes), next(iter(sizes.values()))
    places = torch.arange(sum(sizes.values()))
    if len(names) == 1:
        return [names], [places]
    return [names[:1], names[1:]], [places[:first], places[first:]]


def shares_error(checks, method, settings):
    """Each block's own part of the influences: with factors of that block alone."""
    truth, (names, places) = checks.truth, cut(checks)
    found = checks.influences(method, checks.train, blocks=names, per_block=True, **settings)
    errors = []
    for share, at in zip(found.values(), places, strict=True):
        H, rhs = truth.matrix[at][:, at], truth.test.gradients[:, at]
        lam = settings.get("block_damping", {}).get("0", truth.damping) if at[0] == 0 else (
            truth.damping
        )  # fmt: skip
        factors = rhs if method == "identity" else oracle.damped_solve(H, rhs, lam)
        full = truth.test.gradients if method == "identity" else truth.factors(truth.test.gradients)
        wanted = factors @ truth.gradients[:, at].T
        scale = full.norm(dim=1)[:, None] * truth.gradients.norm(dim=1)
        errors.append(worst((share.double() - wanted).abs(), scale, floor_of(share)))
    return max(errors)


def blocks_error(checks):
    return shares_error(checks, "direct", {"block_damping": {"0": 2 * checks.truth.damping}})


def positions_error(checks, at):
    """Shares of positions add up to the influences of rows."""
    truth = checks.truth
    found = checks.influences("direct", checks.train, positions=at).double()
    axes = found.ndim - 2
    each = axes // 2 if at == "both" else axes
    sums = {"train": (), "test": tuple(range(1, 1 + each)), "both": tuple(range(1, 1 + each))}[at]
    found = found.sum(sums) if sums else found
    found = found.flatten(2).sum(2) if found.ndim > 2 else found
    return by_pair(
        found.to(checks.case.dtype), truth.factors(truth.test.gradients), truth.gradients
    )


def unformed():
    """As of a model whose matrix is too large to be formed."""
    return mock.patch.object(inversion, "worth_forming", return_value=False)


def cg_error(checks, settings):
    rtol = _TOLERANCE[checks.case.dtype]
    with unformed():
        found = checks.factors_of("cg", checks.test, rtol=rtol, **settings)
    return by_row(found, checks.truth.factors(checks.truth.test.gradients))


def lissa_error(checks):
    """By mini-batches as the loader has them."""
    with unformed():
        found = checks.factors_of("lissa", checks.test, rtol=1e-5, maxiter=4000)
    return by_row(found, checks.truth.factors(checks.truth.test.gradients))


def eigenpairs(truth):
    """Largest size first."""
    values, V = torch.linalg.eigh((truth.matrix + truth.matrix.T) / 2)
    order = values.abs().argsort(descending=True)
    return values[order], V[:, order]


def low_rank_error(checks, rank, complement):
    truth = checks.truth
    values, V = eigenpairs(truth)
    values, V, rhs = values[:rank], V[:, :rank], truth.test.gradients
    expected = ((rhs @ V) / (values + truth.damping)) @ V.T
    if complement == "damping":
        expected = expected + (rhs - (rhs @ V) @ V.T) / truth.damping
    with unformed():
        found = checks.factors_of("arnoldi", checks.test, rank=rank, complement=complement)
    scale = rhs.norm(dim=1) / truth.damping
    return worst((found.double() - expected).norm(dim=1), scale, floor_of(found))


def empirical_error(checks):
    """The Fisher of the data's own labels."""
    gradients = checks.truth.train.gradients
    parts = gradients[:, :, None] * gradients[:, None]
    return ekfac_error(checks, parts, fisher="empirical")
