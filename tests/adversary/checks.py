"""What the package says of a case, against the oracle: each check is an error and its bound.

Errors are relative to what rounding is relative to: an influence s·g to ‖s‖ ‖g‖ of its pair, a
perturbation to ‖s‖ times the mixed derivative of its row, a factor to the norm of its row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from unittest import mock

import torch
from adversary import oracle
from adversary.cases import EITHER, RIGHT, Case
from adversary.data import Draw
from adversary.definitions import ekfac_error, kfac_error
from adversary.further_checks import empirical_error, further
from adversary.measures import FLOOR, by_pair, by_row, floor_of, worst
from adversary.truths import Truth, measurement

import influence_dag as idag
from influence_dag.influence import perturbation

# Units of rounding × condition number that an answer may be away.
_ROUNDING = {torch.float64: 1e5, torch.float32: 1e3}
_MOST = 1e-6  # of a gradient, whatever cancels: no fault is as small
_NOISE = 300  # times the error of plain autograd in float32 that an answer in float32 may be away


@dataclass(frozen=True)
class Check:
    """`measure` calls the package and gives the error that has to stay below `bound`.

    `expect`: whether this check may be refused where the case may not.
    """

    name: str
    measure: Callable[[], float]
    bound: float
    expect: str = RIGHT


class Checks:
    """The checks of one case; the module and the loss are as a user would hand them over."""

    def __init__(self, case: Case, truth: Truth):
        self.case, self.truth, self.draw = case, truth, Draw(case.seed + 7)
        self.wrapped = wrapped(case)
        self.train = case.batches(torch.arange(case.rows), case.cuts[0], weighted=True)
        self.again = case.batches(case.order, case.cuts[1], weighted=True)
        after = torch.arange(case.rows, case.rows + len(truth.test.gradients))
        self.test = case.batches(after, case.cuts[2], weighted=False)
        self.eps = torch.finfo(case.dtype).eps
        self.rounding = max(_ROUNDING[case.dtype] * self.eps, _NOISE * self._noise())
        self.exact = self.exact_at(truth.condition)

    def exact_at(self, condition: float) -> float:
        """What may be missed at that condition.

        Rounding of p - p² where p is 1, times what the Jacobian of large rows makes of it, is
        among it in float64; plain autograd in float32 has shown what rounding does to gradients.
        """
        double = self.case.dtype == torch.float64
        saturation = self.rounding_of_second_derivatives if double else 0.0
        return (self.rounding + saturation) * condition + self.cancelled()

    def _of_second_derivatives(self) -> float:
        return self.rounding_of_second_derivatives * self.truth.condition

    @property
    def rounding_of_second_derivatives(self) -> float:
        return rounding_of_second_derivatives(self.case, self.truth)

    def cancelled(self) -> float:
        """Rounding of p - 1 where p is 1, times an input, in rows that hardly have a gradient."""
        if self.case.dtype != torch.float64:
            return 0.0  # as above
        norms = torch.cat([part.gradients for part in (self.truth.train, self.truth.test)]).norm(
            dim=1
        )
        least = FLOOR[torch.float64] * float(norms.max())
        slope = float(self.truth.train.slopes.max()) ** 0.5
        return min(100 * self.eps * slope / max(least, 1e-30), _MOST)

    @cached_property
    def plain(self) -> oracle.RowDerivatives:
        """What plain autograd gives in the case's own precision, one row at a time."""
        return plain_derivatives(self.case)

    def _noise(self) -> float:
        """The error of plain autograd's gradients in the case's own precision."""
        if self.case.dtype == torch.float64:
            return 0.0
        return by_row(self.plain.gradients, self.truth.train.gradients)

    def _mixed_noise(self, name) -> float:
        """As `_noise`, of mixed derivatives: third ones of what saturates, sums that cancel."""
        if self.case.dtype == torch.float64:
            return 0.0
        right = self.truth.train.mixed[name]
        return by_row(self.plain.mixed[name].to(right).flatten(1), right.flatten(1))

    def all(self, most: int) -> list[Check]:
        """Always gradients, factors, influences; then some of the others."""
        gradients = self.rounding + self.cancelled()
        always = [
            Check("gradients of test rows", self._test_gradients, gradients),
            Check("gradients of training rows", lambda: self._dots(self.train), gradients),
            Check("influences", lambda: self._influences("direct", self.train), self.exact),
            Check("another order", lambda: self._permuted("direct"), self.exact),
            Check("gradients in another order", lambda: self._permuted("identity"), gradients),
        ]
        others = self._others()
        return always + self.draw.some_of(others, min(most, len(others)))

    def _others(self) -> list[Check]:
        truth, p = self.truth, self.truth.train.gradients.shape[1]
        found = [
            *(
                Check(name, of, bound, EITHER if may else RIGHT)
                for name, of, bound, may in further(self)
            ),
            Check("factors", self._factors, self.exact),
            Check("blocks", self._blocks, self.exact),
            Check("a right-hand side", self._solve, self.exact),
        ]
        expect = self.case.wrt_expect if self.case.wrt else RIGHT
        for name in truth.train.mixed:
            mixed = 10 * self._mixed_noise(name) + 100 * self.exact
            if mixed >= 1:
                continue  # says nothing: what float32 has lost there is not asked for
            small, large = (partial(self._perturbation, name, large=k) for k in (False, True))
            found.append(Check(f"perturbation {name}", small, mixed, expect))
            found.append(Check(f"perturbation {name}, as of large models", large, mixed, expect))
        if not self.case.measurement:
            found.append(Check("other rows", self._other_rows, self.exact))
            found.append(Check("parameter influences", self._parameter_influences, self.exact))
        if truth.definite and self.case.weights is None and not self.case.measurement:
            found.append(Check("self-influence", self._self_influence, self.exact))
        if truth.damping > 0 and self.case.loss.convex:
            found.append(Check("ekfac", lambda: ekfac_error(self), 10 * self.exact))
            found.append(Check("ekfac, empirical", lambda: empirical_error(self), 10 * self.exact))
            kfac = self._of_second_derivatives() + 10 * self.rounding
            if kfac < 1:
                found.append(Check("kfac", lambda: kfac_error(self), kfac))
        if not truth.definite or truth.damping == 0:
            return found
        rtol = 1e-8 if self.case.dtype == torch.float64 else 1e-4
        loose = self.exact + 2 * rtol * truth.condition
        if loose < 0.01:
            found.append(Check("cg", lambda: self._influences("cg", self.train, rtol=rtol), loose))
        if truth.condition < 50:
            found.append(Check("lissa", self._lissa, 1e-4 * truth.condition + self.exact))
        found.append(Check("arnoldi", lambda: self._whole("arnoldi", rank=p), 20 * self.exact))
        if float(truth.values.min()) > 1e-9 * float(truth.values.max()):
            found.append(Check("nystroem", lambda: self._whole("nystroem", rank=p), 1e-3))
        return found

    # What the package says

    def influences(self, method, loader, **settings):
        settings |= self._indefinite(method)
        return idag.compute_influences(
            self.wrapped,
            loader,
            self.test,
            inversion_method=method,
            hessian_regularization=self.truth.damping,
            curvature=self.truth.curvature,
            **settings,
        )

    def factors_of(self, method, test, **settings):
        settings |= self._indefinite(method)
        return idag.compute_influence_factors(
            self.wrapped,
            self.train,
            test,
            inversion_method=method,
            hessian_regularization=self.truth.damping,
            curvature=self.truth.curvature,
            **settings,
        ).x

    def _test_gradients(self):
        return by_row(self.factors_of("identity", self.test), self.truth.test.gradients)

    def _dots(self, loader):
        found = self.influences("identity", loader)
        return by_pair(found, self.truth.test.gradients, self.truth.gradients)

    def _influences(self, method, loader, **settings):
        factors = self.truth.factors(self.truth.test.gradients)
        found = self.influences(method, loader, **settings)
        return by_pair(found, factors, self.truth.gradients)

    def _permuted(self, method):
        rhs = self.truth.test.gradients
        factors = rhs if method == "identity" else self.truth.factors(rhs)
        found = self.influences(method, self.again)
        return by_pair(found, factors, self.truth.gradients[self.case.order])

    def _whole(self, method, **settings):
        """A low-rank method of full rank."""
        factors = self.truth.factors(self.truth.test.gradients)
        return by_row(self.factors_of(method, self.test, **settings), factors)

    def _factors(self):
        factors = self.truth.factors(self.truth.test.gradients)
        return by_row(self.factors_of("direct", self.test), factors)

    def _solve(self):
        """A right-hand side of one's own, in the range of the matrix."""
        random = self.draw.normal(2, len(self.truth.matrix)).double()
        rhs = (random @ self.truth.matrix + self.truth.damping * random).to(self.case.dtype)
        found = idag.solve_hvp(
            "direct",
            self.wrapped,
            self.train,
            rhs,
            hessian_perturbation=self.truth.damping,
            curvature=self.truth.curvature,
            **self._indefinite("direct"),
        ).x
        return by_row(found, self.truth.factors(rhs.double()))

    def _other_rows(self):
        """Influences of rows that the curvature is not of: those of the test."""
        found = self.influences("direct", self.train, input_data=self.test)
        factors = self.truth.factors(self.truth.test.gradients)
        return by_pair(found, factors, self.truth.test.gradients)

    def _indefinite(self, method):
        solvable = method != "direct" or self.truth.definite or self.truth.damping == 0
        return {} if solvable else {"on_indefinite": "lu"}

    def _lissa(self):
        factors = self.truth.factors(self.truth.test.gradients)
        return by_row(self.factors_of("lissa", self.test, rtol=1e-5, maxiter=4000), factors)

    def _parameter_influences(self):
        """(H + λI)⁻¹ ∇L of the training rows: without test rows, they take their part."""
        found = self.factors_of("direct", None)
        return by_row(found, self.truth.factors(self.truth.train.gradients))

    def _self_influence(self):
        found = idag.compute_influences(
            self.wrapped,
            self.train,
            hessian_regularization=self.truth.damping,
            curvature=self.truth.curvature,
        )
        factors = self.truth.factors(self.truth.train.gradients)
        return by_pair(found, factors, self.truth.gradients)

    def _blocks(self):
        """One block of the first parameter, one of the others."""
        names = [
            n for n, p in self.case.module(torch.float64).named_parameters() if p.requires_grad
        ]
        size = len(
            self.wrapped.objective.unflatten(self.wrapped.objective.params)[names[0]].view(-1)
        )
        if len(names) == 1 or self.truth.damping == 0:
            return self._factors()
        found = self.factors_of("direct", self.test, blocks=[names[:1], names[1:]])
        H = self.truth.matrix.clone()
        H[:size, size:] = H[size:, :size] = 0
        values = torch.linalg.eigvalsh((H + H.T) / 2)
        if float((values + self.truth.damping).min()) <= self.truth.damping / 20:
            return self._factors()
        return by_row(found, oracle.damped_solve(H, self.truth.test.gradients, self.truth.damping))

    def _perturbation(self, name, *, large):
        """By the mixed Jacobian where the model is small enough, or by what large ones take."""
        largest = 0 if large else perturbation._SMALL
        with mock.patch.object(perturbation, "_SMALL", largest):
            found = self.influences(
                "direct", self.train, influence_type="perturbation", wrt=self.case.perturbed
            )
        if isinstance(found, dict):
            found = found[name]
        elif isinstance(found, tuple):
            found = found[int(name)]
        factors = self.truth.factors(self.truth.test.gradients)
        mixed = self.truth.mixed(name)
        wanted = torch.einsum("jp,ipf->jif", factors, mixed)
        scale = factors.norm(dim=1)[:, None] * mixed.flatten(1).norm(dim=1)
        error = (found.double().reshape(wanted.shape) - wanted).abs().amax(2)
        return worst(error, scale, floor_of(found))


def plain_derivatives(case: Case) -> oracle.RowDerivatives:
    """By the oracle in the case's own precision: what rounding does to plain autograd."""
    module, x, y = case.module(case.dtype), *case.part(slice(0, case.rows))
    return oracle.differentiate(
        module, case.output_of, case.value, x, y, wrt=case.perturbed, dtype=case.dtype
    )


def rounding_of_second_derivatives(case: Case, truth: Truth) -> float:
    """What p - p² of probabilities rounds to, times the outputs' slopes twice."""
    return 10 * torch.finfo(case.dtype).eps * float(truth.train.slopes.max())


def wrapped(case: Case):
    """The module and the loss as a user hands them over."""

    def measured(output, target):
        return torch.stack([measurement(f) for f in case.output.unpack(output)])

    return idag.TorchTwiceDifferentiable(
        case.module(case.dtype), case.given, measurement=measured if case.measurement else None
    )
