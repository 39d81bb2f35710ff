"""How a case ends: right, refused, or wrong; and what many cases say together."""

import re
import signal
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from adversary.cases import EITHER, REFUSED, RIGHT, Case, case
from adversary.checks import (
    Check,
    Checks,
    plain_derivatives,
    rounding_of_second_derivatives,
    wrapped,
)
from adversary.truths import Truth, truth_of

import influence_dag as idag
from influence_dag.errors import InfluenceDagError

SECONDS = 60  # of the processor, the oracle's work included


@dataclass(frozen=True)
class Outcome:
    """`errors` by check, as a multiple of the bound and as they are; `failures` in words."""

    case: Case
    errors: dict[str, float]
    refusals: dict[str, str]
    failures: tuple[str, ...]

    @property
    def kind(self) -> str:
        if self.failures:
            return "failed"
        return "refused" if self.refusals else "right"

    def __str__(self) -> str:
        more = len(self.failures) - 3
        rest = [f"and {more} more"] if more > 0 else []
        return "\n    ".join([self.case.description, *self.failures[:3], *rest])


def outcome(seed: int, *, most: int = 3) -> Outcome:
    """Run the case of that number, with `most` of the checks that are not always made."""
    the_case = case(seed)
    with warnings.catch_warnings(), _limited(SECONDS):
        warnings.simplefilter("ignore")
        try:
            return _outcome(the_case, most)
        except _TooSlowError:
            return Outcome(the_case, {}, {}, (f"more than {SECONDS} s of the processor",))


def _outcome(the_case: Case, most: int) -> Outcome:
    if the_case.expect == REFUSED:
        return _refused(the_case)
    try:
        truth = truth_of(the_case)
    except (NotImplementedError, RuntimeError):
        if the_case.expect == RIGHT:
            raise
        return _refused(the_case)  # torch has no second derivative
    if not truth.matrix.isfinite().all() or truth.train.asymmetry > 1e-6:
        return _refused(the_case)
    return _compared(the_case, truth, most)


def _compared(the_case: Case, truth: Truth, most: int) -> Outcome:
    errors, refusals, failures = {}, {}, []
    for check in Checks(the_case, truth).all(most):
        try:
            error = check.measure()
        except InfluenceDagError as refusal:
            refusals[check.name] = _reason(refusal)
            if not _may_refuse(the_case, truth, check):
                failures.append(f"{check.name}: refused: {refusal}")
        except _TooSlowError:
            raise
        except Exception as error:
            failures.append(f"{check.name}: {type(error).__name__}: {str(error)[:300]}")
        else:
            errors[check.name] = error
            if not error <= check.bound:
                failures.append(f"{check.name}: off by {error:.1e}, bound {check.bound:.1e}")
        if the_case.expect == EITHER and refusals:
            break
    return Outcome(the_case, errors, refusals, tuple(failures))


def _may_refuse(the_case: Case, truth: Truth, check: Check) -> bool:
    """Without damping a right-hand side need not lie in the range of a singular matrix.

    Nor is there a digit of a matrix that is less than rounding of its terms, nor a matrix where
    plain autograd in the case's own precision ends in what is not a number.
    """
    if EITHER in (the_case.expect, check.expect):
        return True
    if is_rounding(the_case, truth) or not is_finite(the_case):
        return True
    return truth.damping == 0 and not in_range(truth, check)


def is_rounding(the_case: Case, truth: Truth) -> bool:
    """Whether the matrix is no more than its terms round to."""
    return float(truth.matrix.norm()) < rounding_of_second_derivatives(the_case, truth)


def is_finite(the_case: Case) -> bool:
    """Whether plain autograd has numbers in the case's own precision."""
    if the_case.dtype == torch.float64:
        return True  # the oracle's own
    plain = plain_derivatives(the_case)
    return bool(plain.hessians.isfinite().all() and plain.gauss_newtons.isfinite().all())


def in_range(truth: Truth, check: Check) -> bool:
    rhs = truth.train.gradients if "parameter" in check.name else truth.test.gradients
    back = truth.factors(rhs) @ truth.matrix
    return bool((back - rhs).norm() <= 1e-7 * rhs.norm())


def _refused(the_case: Case) -> Outcome:
    """Influences have to be refused, in words of the package."""
    train = the_case.batches(torch.arange(the_case.rows), the_case.cuts[0], weighted=True)
    try:
        idag.compute_influences(wrapped(the_case), train, hessian_regularization=10.0)
    except InfluenceDagError as refusal:
        return Outcome(the_case, {}, {"influences": _reason(refusal)}, ())
    except _TooSlowError:
        raise
    except Exception as error:
        failure = f"influences: {type(error).__name__}: {str(error)[:300]}"
        return Outcome(the_case, {}, {}, (failure,))
    return Outcome(the_case, {}, {}, ("influences: accepted, though there is no right answer",))


def _reason(refusal: Exception) -> str:
    """The message without what belongs to the case."""
    text = re.sub(r"'[^']*'", "'…'", str(refusal))
    return f"{type(refusal).__name__}: {re.sub(r'[-+]?[0-9][0-9.e+-]*', '#', text)[:90]}"


class _TooSlowError(BaseException):
    pass


@contextmanager
def _limited(seconds):
    def stop(_signal, _frame):
        raise _TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Summary:
    """Counts, worst errors by family, refusals by reason, failures by number."""

    def __init__(self, outcomes: Iterable[Outcome]):
        self.kinds, self.reasons = Counter(), Counter()
        self.by_family: dict[str, Counter] = defaultdict(Counter)
        self.worst: dict[str, float] = defaultdict(float)
        self.failures: list[Outcome] = []
        for one in outcomes:
            self.add(one)

    def add(self, one: Outcome) -> None:
        self.kinds[one.kind] += 1
        self.reasons.update(set(one.refusals.values()))
        self.failures += [one] if one.failures else []
        for family in (one.case.family, one.case.loss_family):
            self.by_family[family][one.kind] += 1
        precision = "float64" if one.case.dtype == torch.float64 else "float32"
        for name, error in one.errors.items():
            check = "perturbations" if name.startswith("perturbation") else name
            families = () if name in ("cg", "lissa") else (one.case.family, one.case.loss_family)
            for family in (*families, check):
                key = f"{family} {precision}"
                self.worst[key] = max(self.worst[key], error)

    def __str__(self) -> str:
        lines = [f"{sum(self.kinds.values())} cases: {dict(self.kinds)}", "", "worst error"]
        lines += [f"  {error:8.1e}  {family}" for family, error in sorted(self.worst.items())]
        lines += ["", "cases by family"]
        lines += [f"  {family}: {dict(kinds)}" for family, kinds in sorted(self.by_family.items())]
        lines += ["", "refused"]
        lines += [f"  {count:5d}  {reason}" for reason, count in self.reasons.most_common()]
        lines += ["", f"failed: {len(self.failures)}"] if self.failures else []
        return "\n".join(lines + [str(one) for one in self.failures])


__all__ = ["EITHER", "REFUSED", "RIGHT", "Outcome", "Summary", "outcome"]
