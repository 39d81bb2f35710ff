"""What must hold of the stored arrays, whatever computed them. Each check reads the store alone."""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from influence_dag.datasets.slots import SPLITS
from influence_dag.solvers.rounding import rounding
from influence_dag.stages import automatic, dampings, naming, reading
from influence_dag.stages.blocks import pieces
from influence_dag.stages.minimum import judged, measured_before
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version


@dataclass(frozen=True)
class Outcome:
    """Whether a promise holds, and by how much."""

    passed: bool
    message: str
    metadata: dict[str, Any] = field(default_factory=dict)
    tolerated: bool = False  # a failure that the study said it would live with


REFITS = 0.9  # correlation of predicted and actual changes
FAR = 1000  # how far λ may be from the mean |eigenvalue|
RESIDUAL = {"float32": 1e-4, "float64": 1e-8}


def complete(bench: Workbench, artifact: str, *splits: str) -> Outcome:
    """Every block has been computed, and every row that exists is finite."""
    version = bench.require(artifact)
    damage = version.verify()
    if damage:
        return Outcome(False, f"{len(damage)} damaged or missing files, first {damage[0].file}")
    counts = {name: _not_finite(version, name, splits) for name in version.variables}
    bad = {name: count for name, count in counts.items() if count}
    message = f"not finite: {bad}" if bad else "all blocks present, all numbers finite"
    return Outcome(not bad, message, {"not_finite": counts})


def _not_finite(version: Version, name: str, splits: tuple[str, ...]) -> int:
    """Numbers that are not finite among the rows that exist, read a chunk at a time."""
    variable = version.variables[name]
    if np.dtype(variable.dtype).kind != "f":
        return 0
    valid = {
        dim: np.asarray(version.coordinate(f"{dim}_valid"), bool)
        for dim in variable.dims
        if dim in splits
    }
    of_some = naming.is_sampled(version, name)  # NaN says that a row is not in the sample
    count = 0
    for region in map(variable.region, np.ndindex(variable.grid)):
        block = version.read(name, *region)
        for axis, (dim, at) in enumerate(zip(variable.dims, region, strict=True)):
            if dim in valid:
                block = np.compress(valid[dim][at], block, axis=axis)
        wrong = np.isinf(block) if of_some else ~np.isfinite(block)
        count += int(wrong.sum())
    return count


def gradient_norm(bench: Workbench) -> Outcome:
    """How far θ is from a minimum: a statement about trust, an error only where one is required."""
    version, model = bench.require("model"), bench.settings.model
    info = version.attrs["info"]
    verdict = judged(model, info)
    message = verdict.message
    if before := measured_before(version, *(bench.axis("dataset", split) for split in SPLITS)):
        message += f"; measured {before}"
    known = {name: info[name] for name in ("gradient_norm", "relative_gradient") if name in info}
    passed = verdict.is_minimum or model.wanted_minimum == "ignore"
    return Outcome(passed, message, known, tolerated=verdict.tolerated)


def symmetric(bench: Workbench, kind: str) -> Outcome:
    """The stored matrix equals its transpose."""
    matrix = bench.require(kind).read(kind)
    worst = scale = 0.0
    for rows in pieces(0, len(matrix), 256):  # NaN is kept, which `max` may lose
        worst = float(np.maximum(worst, np.abs(matrix[rows] - matrix[:, rows].T).max()))
        scale = float(np.maximum(scale, np.abs(matrix[rows]).max()))
    message = f"largest asymmetry {worst:.1e} of {scale:.1e}"
    return Outcome(worst <= 1e-12 * scale, message, {"asymmetry": worst})


def positive_definite(bench: Workbench, kind: str) -> Outcome:
    """`H + λI` has only positive eigenvalues, so that `(H + λI)⁻¹` is what the theory means."""
    info = bench.require(kind).attrs["info"]
    smallest, damping = info.get("smallest_eigenvalue"), min(automatic.of_matrix(bench, kind))
    if smallest is None:
        return Outcome(True, "no spectrum at this size; a factorisation will tell")
    return _damped(info, smallest, damping, rounding(bench.dtype, info["parameters"]))


def _damped(info: dict[str, Any], smallest: float, damping: float, share: float) -> Outcome:
    message = f"smallest eigenvalue {smallest:.3g}, damping {damping:g}"
    numbers = {"smallest_eigenvalue": smallest, "damping": damping}
    floor = share * abs(info["largest_eigenvalue"])
    if smallest < -floor and damping < -2 * smallest:
        # Positive or not, the most negative direction then has the largest weight of all.
        message += (
            f"; a damping of {-2 * smallest:.2g} or more, on_indefinite: absolute or curvature: "
            "gauss_newton come nearer to what refits find"
        )
        return Outcome(False, message, numbers, tolerated=smallest + damping > 0)
    if smallest + damping <= floor:
        message += "; eigenvalues that rounding cannot tell from zero count as zero"
    return Outcome(True, message, numbers)


def damping_near_spectrum(bench: Workbench, method: str) -> Outcome:
    """λ is of the order of the curvature's eigenvalues, where there is no weight decay to be it."""
    info = bench.require(naming.curvature(method)).attrs["info"]
    known, mean = dampings.of_method(bench, method), info.get("mean_eigenvalue")
    if not mean or max(known) == 0:
        return Outcome(True, "no spectrum to compare λ with")
    largest = info.get("largest_eigenvalue", FAR * mean)
    message = f"λ = {_listed(known)}, mean |eigenvalue| {mean:.2g}"
    small = bench.settings.model.is_given and 0 < min(known) < mean / FAR
    if small:
        message += (
            "; of a λ so small the directions decide of which the data say least, and θ is no "
            "minimum at which that would be right: damping: auto takes the mean"
        )
    if max(known) > largest:
        message += "; above the spectrum influences are little but dot products of gradients"
    numbers = {"damping": list(known), "mean_eigenvalue": mean}
    return Outcome(not small and max(known) <= largest, message, numbers, tolerated=True)


def _listed(known: tuple[float, ...]) -> str:
    return ", ".join(f"{each:.3g}" for each in known)


def residual_below(bench: Workbench, method: str) -> Outcome:
    """Every solve reached its tolerance."""
    version = bench.require(naming.factors(method))
    values = np.asarray(version.read("residual"), np.float64)
    valid = bench.axis_of(version, "test").valid
    worst = float(values[..., valid].max()) if valid.any() else 0.0
    settings = bench.settings.methods[method]
    limit = max(RESIDUAL[bench.settings.compute.dtype], getattr(settings, "rtol", 0.0))
    message = f"worst relative residual {worst:.1e}, limit {limit:.0e}"
    if not worst <= limit:
        message += f"; {_cause_of_residual(bench)}"
    tolerated = getattr(settings, "on_failure", "raise") == "warn"
    return Outcome(worst <= limit, message, {"worst_residual": worst}, tolerated)


def _cause_of_residual(bench: Workbench) -> str:
    unscaled = bench.require("model").attrs["info"].get("unscaled_columns")
    if unscaled:
        return unscaled
    if bench.settings.compute.dtype == "float32":
        return "the system is ill-conditioned for float32: compute: {dtype: float64}, or more λ"
    return "the system is ill-conditioned: raise `damping`, or standardise the features"


def matches_parts(bench: Workbench, method: str) -> Outcome:
    """A few stored influences equal the product of the stored factors and gradients."""
    version = bench.require(naming.influences(method))
    test, train = bench.axis_of(version, "test"), bench.axis_of(version, "train")
    rng = np.random.default_rng(0)
    worst = scale = 0.0
    for i, j in zip(rng.choice(test.slots, 16), rng.choice(train.slots, 16), strict=True):
        s = reading.load_factors(bench, method, slice(i, i + 1), -1)
        expected = reading.load_gradients(bench, slice(j, j + 1)).inner(s).item()
        pair = slice(i, i + 1), slice(j, j + 1)
        stored = dampings.at(version, "influences", -1, *pair).item()
        worst = float(np.maximum(worst, abs(stored - expected)))
        scale = float(np.maximum(scale, abs(expected)))
    limit = max(1e-4, 4 * bench.settings.store.max_relative_error)
    return Outcome(
        worst <= limit * scale, f"16 random pairs: largest difference {worst:.1e} of {scale:.1e}"
    )


def methods_agree(bench: Workbench, *methods: str) -> Outcome:
    """Methods that solve the same system exactly give the same influences."""
    agreement = bench.require(naming.REPORT).attrs["info"]["agreement"]
    pairs = [f"{a} vs {b}" for a, b in combinations(methods, 2)]
    errors = {pair: agreement[pair]["relative_error"] for pair in pairs}
    worst = float(np.max([*errors.values()]))  # NaN, of no rows, is kept
    limit = max(1e-3, 100 * max(getattr(bench.settings.methods[m], "rtol", 0) for m in methods))
    message = f"largest relative error {worst:.1e}, limit {limit:.0e}"
    return Outcome(worst <= limit, message, {"relative_errors": errors})


def predicts_refits(bench: Workbench) -> Outcome:
    """Predicted and actual changes correlate; of a network not every row's need to."""
    info = bench.require(naming.validation("leave_one_out")).attrs["info"]
    pearson = info["pearson"]
    message = f"Pearson {pearson:.4f}, slope {info['slope']:.3f}, limit {REFITS:g}"
    if pearson < REFITS:
        message += "; a damping nearer to the fit's weight decay, or the leverage, may come nearer"
    return Outcome(pearson >= REFITS, message, {"pearson": pearson}, tolerated=True)
