"""What was measured of a stored study, each finding a number with a sentence about it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.errors import StoreError
from influence_dag.query.older import matrix_behind, newer_beside, theta_measured
from influence_dag.query.pictures import dampings
from influence_dag.query.report.intervals import over_columns, pearson, slope
from influence_dag.query.report.verdict import (
    RANKS,
    SIZES,
    VALUES,
    Finding,
    Outcome,
    Verdict,
    verdict,
)
from influence_dag.stages import naming
from influence_dag.stages.sampling import values_of_rows
from influence_dag.stages.wording import NO_MINIMUM
from influence_dag.store import Version
from influence_dag.study.curvatures import rounding_share
from influence_dag.study.methods import MethodSettings, MethodsSettings
from influence_dag.study.stored import as_stored

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults

RESIDUAL = {"float32": 1e-4, "float64": 1e-8}
SAME = 1e-3  # relative error up to which exact methods agree
REFITS = ("leave_one_out", "datamodels")
LEAVE_ONE_OUT, DATAMODELS = map(naming.validation, REFITS)


@dataclass(frozen=True)
class Findings:
    """Everything measured of one method's influences; `verdict` draws the conclusion."""

    study: str
    method: str
    damping: tuple[float, ...]
    found: tuple[Finding, ...]

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.found)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": asdict(self.verdict)}


def findings_of(results: "StudyResults", method: str | None = None) -> Findings:
    """What the store says of itself, of θ, of the solves and of refits; nothing is computed anew.

    Reads attributes, residuals and what validations have stored: neither torch nor the project's
    code takes part.
    """
    if not results.methods:
        raise StoreError(f"{results.store.address} has no influences yet; materialise the study")
    method = method or results.methods[0]
    results[method]  # a method that there is not is told with the nearest one
    look = _Look(results, method)
    return Findings(results.store.name, method, look.dampings, tuple(look.all()))


class _Look:
    def __init__(self, results: "StudyResults", method: str):
        self.results, self.method, self.store = results, method, results.store

    def all(self) -> Iterator[Finding]:
        yield self.sound()
        yield self.fresh()
        yield from self.measured()
        yield self.minimum()
        yield from self.definite()
        yield from self.damped()
        yield from self.residual()
        yield from self.agreement()
        yield from self.refits()
        yield from self.subsets()

    @cached_property
    def factors(self) -> Version:
        return self.store.version(naming.factors(self.method))

    @cached_property
    def dampings(self) -> tuple[float, ...]:
        return dampings(self.store, [self.method])

    def sound(self) -> Finding:
        """Files by size and time; `influence-dag doctor --checksums` reads them."""
        names = self.store.names()
        damage = [each for name in names for each in self.store.version(name).verify()]
        files = f"{len(damage)} files of {len(names)} artifacts are damaged or missing"
        return Finding("files", len(damage), 0, "bad" if damage else "good", files)

    def fresh(self) -> Finding:
        """Whether what is stored together belongs together."""
        moved = newer_beside(self.store, self.store.version(naming.influences(self.method)))
        says = f"{len(moved)} things have changed since the influences were computed"
        if moved:
            says += f": {', '.join(moved)}; materialise the study again"
        return Finding("up to date", len(moved), 0, "bad" if moved else "good", says)

    def measured(self) -> Iterator[Finding]:
        """What the study measures, refits and agreement, where it is not of these influences."""
        there = map(self.store.current, (*self._asked_refits, naming.REPORT))
        others = [each for each in there if each and not self._is_of_these(each, self.method)]
        if others:
            says = (
                f"{len(others)} artifacts were measured on other influences than these: "
                f"{', '.join(each.artifact for each in others)}; materialise the study again, or "
                "remove the folder of what it asks for no more"
            )
            yield Finding("measured", len(others), 0, "bad", says)

    @property
    def _asked_refits(self) -> list[str]:
        """Those that the study asked for when it was solved; others stay as they once were."""
        told = json.loads(self.factors.attrs.get("study_settings", "{}")).get("settings", {})
        asked = told.get("validation", {})
        return [naming.validation(kind) for kind in REFITS if asked.get(kind)]

    def _is_of_these(self, version: Version, *methods: str) -> bool:
        """Whether it was measured on the influences that are stored now, as far as it says."""
        of = version.attrs.get(naming.OF_INFLUENCES, {})
        now = {name: self.store.version(naming.influences(name)).data_version for name in methods}
        return all(of.get(name, known) == known for name, known in now.items())

    def minimum(self) -> Finding:
        model = self.store.version("model").attrs
        info, is_minimum = model["info"], not model["assumes"].startswith(NO_MINIMUM)
        norm, relative = info["gradient_norm"], info.get("relative_gradient")
        says = (
            f"θ {'is' if is_minimum else 'is not'} at a minimum: the gradient's norm is {norm:.2g}"
        )
        if relative is not None:
            says += f", {relative:.1e} of that of single rows"
        if before := theta_measured(self.store):
            says += f"; measured {before}"
        return Finding("minimum", norm, None, "good" if is_minimum else "warn", says)

    def definite(self) -> Iterator[Finding]:
        """λ against the most negative eigenvalue, where the matrix is stored with its spectrum."""
        settings = _settings(self.factors)
        if not settings.is_damped:
            says = (
                "0 curvature takes part: these are products of gradients, which say nothing of "
                "leaving rows out"
            )
            yield Finding("curvature", 0, None, "warn", says)
            return
        curvature = self.store.version(naming.curvature(self.method))
        version = matrix_behind(self.store, curvature, settings.curvature)
        info = version.attrs["info"] if version else {}
        smallest = info.get("smallest_eigenvalue")
        other = getattr(settings, "on_indefinite", "") == "absolute" or settings.blocks != "full"
        if smallest is None or not self.dampings or other:  # the system is another matrix's
            return
        eps = float(np.finfo(self.factors.variables["influence_factors"].dtype).eps)
        zero = rounding_share(eps, info["parameters"]) * abs(info["largest_eigenvalue"])
        yield _definite(settings.curvature, smallest, min(self.dampings), zero)

    def damped(self) -> Iterator[Finding]:
        decay = self.store.version("model").attrs["info"].get("weight_decay")
        if not decay or not self.dampings:
            return
        ratio = (largest := max(self.dampings)) / decay
        outcome: Outcome = "good" if ratio <= 1 + 1e-9 else "warn"
        says = f"λ = {largest:g} is {ratio:.3g} times the weight decay of the fit ({decay:g})"
        if outcome == "warn":
            says += ", so that influences are those of a more strongly penalised model"
        yield Finding("damping", ratio, 1, outcome, says)

    def residual(self) -> Iterator[Finding]:
        known = values_of_rows(self.factors, "residual")
        if not len(known):  # no test row, or none of them in the sample
            return
        worst = float(known.max())
        settings = _settings(self.factors)
        dtype = self.factors.variables["influence_factors"].dtype
        limit = max(RESIDUAL.get(dtype, 1e-4), getattr(settings, "rtol", 0.0))
        outcome: Outcome = "good" if worst <= limit else ("bad" if settings.is_exact else "warn")
        sampled = naming.is_sampled(self.factors, "residual")
        of = f"{len(known)} sampled solves" if sampled else "a solve"
        says = f"the worst residual of {of} is {worst:.1e}"
        if outcome == "warn":
            says += f": {self.method} solves an approximation of the system"
        yield Finding("residual", worst, limit, outcome, says)

    def agreement(self) -> Iterator[Finding]:
        """With the other methods; two that are exact and differ are wrong, one or the other."""
        report = self.store.current(naming.REPORT)
        if report is None:
            return
        for pair, found in report.attrs["info"]["agreement"].items():
            names = pair.split(" vs ")
            if self.method not in names or not self._is_of_these(report, *names):
                continue
            versions = [self.store.version(naming.factors(name)) for name in names]
            same = None not in (systems := {_system(v) for v in versions}) and len(systems) == 1
            error, ranks = found["relative_error"], found["spearman_per_test"]
            other = next(name for name in names if name != self.method)
            if same:
                outcome: Outcome = "good" if error <= SAME else "bad"
                says = f"{other} gives the same influences, to {error:.1e} of their size"
                if outcome == "bad":
                    says = f"{other} solves the same system, and differs by {error:.1e} of its size"
                yield Finding(f"same as {other}", error, SAME, outcome, says)
            else:
                outcome = "good" if ranks >= VALUES else "warn"
                says = f"{other} ranks training rows alike at Spearman {ranks:.3f}"
                if isnan(ranks):
                    says = f"no test row ranks its training rows by both {other} and {self.method}"
                yield Finding(f"like {other}", ranks, VALUES, outcome, says)

    def refits(self) -> Iterator[Finding]:
        version = self.store.current(LEAVE_ONE_OUT)
        if version is None or version.attrs.get("method") != self.method:
            return
        if not self._is_of_these(version, self.method):
            return
        predicted, actual = version.read("predicted"), version.read("actual")
        rows = predicted.shape[1]
        r = pearson(predicted, actual)
        interval = over_columns(pearson, predicted, actual)
        outcome: Outcome = "good" if r >= VALUES else ("warn" if r >= RANKS else "bad")
        says = (
            f"over {rows} rows left out and refitted, predicted and actual changes correlate at "
            f"Pearson {_with(r, interval)}"
        )
        yield Finding("refits", r, VALUES, outcome, says, interval)
        size, interval = slope(predicted, actual), over_columns(slope, predicted, actual)
        outcome = "good" if SIZES[0] <= size <= SIZES[1] else "warn"
        says = f"actual changes are {_with(size, interval)} times as large as predicted"
        yield Finding("sizes", size, 1, outcome, says, interval)

    def subsets(self) -> Iterator[Finding]:
        version = self.store.current(DATAMODELS)
        score = version.attrs["info"]["scores"].get(self.method) if version else None
        if version is None or score is None or not self._is_of_these(version, self.method):
            return
        lds, interval = score["lds"], tuple(score["interval"])
        outcome: Outcome = "good" if lds >= RANKS else "warn"
        says = (
            f"over {version.attrs['info']['subsets']} random subsets refitted, the linear "
            f"datamodelling score is {_with(lds, interval)}"
        )
        yield Finding("subsets", lds, RANKS, outcome, says, interval)


def _definite(kind: str, smallest: float, damping: float, zero: float) -> Finding:
    """Whether the most negative direction has less weight than those that count as flat.

    What is no further from 0 than `zero` counts as flat.
    """
    is_negative = smallest < -zero
    wanted = -2 * smallest if is_negative else 0.0
    outcome: Outcome = "good" if damping >= wanted else "warn"
    outcome = "bad" if is_negative and damping + smallest <= 0 else outcome
    says = f"λ = {damping:g}, and the smallest eigenvalue of the {kind} is {smallest:.2g}"
    if outcome != "good":
        says += f", so that its direction outweighs all others; take λ ≥ {wanted:.2g}"
    return Finding("curvature", smallest, -damping / 2, outcome, says)


def _settings(version: Version) -> MethodSettings:
    """Those that a method's factors were solved with."""
    name = version.attrs["method"]
    stored = {name: version.attrs["method_settings"]}
    return as_stored(MethodsSettings, stored, version.address)[name]


def _system(version: Version) -> str | None:
    """The curvature whose whole damped system a method solves; None for an approximation."""
    settings = _settings(version)
    whole = settings.blocks == "full" and getattr(settings, "on_indefinite", "") != "absolute"
    return settings.curvature if settings.is_exact and whole else None


def _with(value: float, interval: tuple[float, ...]) -> str:
    return f"{value:.3g} [{interval[0]:.2g}, {interval[1]:.2g}]"
