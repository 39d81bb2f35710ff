"""Labels drawn from the model: their Fisher is the Gauss-Newton matrix of the likelihood."""

import pytest
import torch
from kronecker_matrices import assembled, factorize
from tiny_project import Project
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.curvature import GaussNewton
from influence_dag.curvature.kronecker_fisher import output_roots
from influence_dag.errors import ModelError
from influence_dag.losses import bce_with_logits, cross_entropy, mse, next_token, reduced_loss
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC

DRAWS, CLASSES, LENGTH = 30_000, 3, 4


def poisson_loss(output, target):
    """The negative log-likelihood of counts with the outputs for logarithms of their means."""
    return (output.exp() - target * output).sum(1)


def poisson(output, target, generator):
    return torch.poisson(output.exp(), generator=generator)


def variance_loss(output, target):
    """Of a Gaussian whose mean and log-variance the model gives: no output stands for itself."""
    mean, log_variance = output.unbind(1)
    return 0.5 * ((target - mean).square() * (-log_variance).exp() + log_variance)


def normal(output, target, generator):
    mean, log_variance = output.unbind(1)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return mean + (log_variance / 2).exp() * noise


def smooth(output, target):
    return nn.functional.cross_entropy(output, target, label_smoothing=0.2, reduction="none")


def own_classes(output, target):
    return F.cross_entropy(output, target, reduction="none")


def coins(output, target):
    return F.softplus(output).sum(1) - (target * output).sum(1)


logits = torch.tensor([[1.0, -0.5, 0.3]]).double()
sequence = torch.randn(1, CLASSES, LENGTH, generator=torch.Generator().manual_seed(0)).double()
one = torch.tensor([2])
tokens = torch.tensor([[-100, 1, 0, -100]])
weights = torch.tensor([1.0, 0.5, 3.0])
numbers = torch.tensor([[0.5, 2.0, 1.0]]).double()

# Name → loss, outputs and targets of a row, what is asked for.
LIKELIHOODS = {
    "classes": (cross_entropy, logits, one, None),
    "torch's classes": (reduced_loss(nn.CrossEntropyLoss()), logits, one, None),
    "weighted classes": (reduced_loss(nn.CrossEntropyLoss(weight=weights)), logits, one, None),
    "smoothed classes": (smooth, logits, one, "categorical"),
    "classes of one's own": (own_classes, logits, one, None),
    "classes as probabilities": (cross_entropy, logits, logits.softmax(1), None),
    "positions, some ignored": (cross_entropy, sequence, tokens, None),
    "next tokens": (next_token, sequence, tokens, None),
    "a sum over positions": (
        lambda f, y: own_classes(f, y).sum(1), sequence, tokens, "categorical"
    ),
    "coins": (bce_with_logits, logits, (numbers > 0.7).double(), None),
    "coins of one's own": (coins, logits, (numbers > 0.7).double(), "bernoulli"),
    "numbers": (mse, logits, numbers, None),
    "numbers of different precision": (
        lambda f, y: ((f - y).square() * weights).sum(1), logits, numbers, "gaussian"
    ),
    "counts": (poisson_loss, logits, numbers, poisson),
    "a mean over counts": (lambda f, y: poisson_loss(f, y) / 3, logits, numbers, poisson),
    "counts of which nothing is said": (poisson_loss, logits, numbers, None),
}  # fmt: skip


@pytest.mark.parametrize("case", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_the_mean_square_of_drawn_roots_is_the_curvature_of_the_likelihood(case):
    loss, outputs, targets, distribution = case
    many = [part.expand(DRAWS, *part.shape[1:]) for part in (outputs, targets)]
    roots = output_roots(
        loss, *many, fisher="sampled", distribution=distribution,
        generator=torch.Generator().manual_seed(1),
    ).reshape(DRAWS, -1)  # fmt: skip
    expected = torch.autograd.functional.hessian(lambda f: loss(f, targets).sum(), outputs)
    expected = expected.reshape(outputs.numel(), -1)
    found = roots.T @ roots / DRAWS
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_a_curvature_that_depends_on_labels_is_that_of_drawn_ones():
    outputs = torch.tensor([[0.4, -0.7]]).double().expand(DRAWS, -1)
    roots = output_roots(
        variance_loss, outputs, outputs[:, 0], fisher="sampled", distribution=normal,
        generator=torch.Generator(),
    )[0]  # fmt: skip
    found = roots.T @ roots / DRAWS
    expected = torch.diag(torch.tensor([torch.tensor(0.7).exp(), 0.5])).double()  # textbook
    assert_close(found, expected, rtol=0, atol=0.05)


def test_no_hessian_in_the_outputs_is_formed():
    outputs = torch.randn(2, 3_000, 8)  # whose Hessians would take 4.6 GB
    targets = torch.randint(3_000, (2, 8))
    root = output_roots(
        cross_entropy, outputs, targets, fisher="sampled", generator=torch.Generator()
    )
    assert root.shape == (1, 2, 3_000, 8)


WRONG = {
    "numbers taken for classes": (mse, logits, numbers, "categorical", "not categorical"),
    "classes taken for numbers": (cross_entropy, logits, one, "gaussian", "not gaussian"),
    "no known form": (
        variance_loss, logits[:, :2], numbers[:, 0], None, "neither of a softmax.*distribution="
    ),
    "another likelihood": (
        lambda f, y: 5 * poisson_loss(f, y), logits, numbers, poisson, "not the negative log-lik"
    ),
    "not convex": (lambda f, y: -mse(f, y), logits, numbers, None, "not convex .* 1 of 1 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_distribution_that_is_not_the_losss_is_refused(case):
    *given, distribution, words = case
    with pytest.raises(ModelError, match=words):
        output_roots(
            *given, fisher="sampled", distribution=distribution, generator=torch.Generator()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_predictions_are_drawn_from_as_well(dtype):
    outputs = torch.tensor([[4.0, 0.0, 1.0], [90.0, 0.0, -3.0]], dtype=dtype)
    many = outputs.repeat_interleave(DRAWS, 0)
    roots = output_roots(
        cross_entropy, many, torch.zeros(len(many)).long(), fisher="sampled",
        generator=torch.Generator(),
    )[0]  # fmt: skip
    p = outputs[0].double().softmax(0)
    found = roots[:DRAWS].T.double() @ roots[:DRAWS].double() / DRAWS
    assert_close(found, p.diag() - p.outer(p), rtol=0, atol=0.003)
    assert roots[DRAWS:].abs().max() < 1e-12


def test_kronecker_factors_of_many_draws_are_the_exact_ones():
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(5, 2).double()
    rows = Rows(x.repeat(4_000, 1), torch.ones(20_000, 2).double())
    objective = Objective(module, poisson_loss)
    method = EKFAC(fisher="sampled", distribution=poisson)
    found, _ = assembled(factorize(method, objective, rows, batch_size=4_000), objective.size)
    exact, inside = assembled(factorize(EKFAC(), objective, rows[:5]), objective.size)
    dense = GaussNewton(objective, rows[:5], route="autograd").dense() * inside
    assert (found - exact).norm() < 0.1 * exact.norm() < 0.5 * dense.norm()


class InParts(nn.Module):
    """The outputs of a module one by one, as a dictionary."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return dict(zip("ab", self.module(x).split(1, dim=1), strict=True))


def test_labels_are_drawn_for_outputs_of_any_structure():
    """As the same numbers in one tensor draw them."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    rows = Rows(torch.randn(6, 2).double(), torch.ones(6, 2).double())

    def joined(function):
        return lambda parts, *others: function(torch.cat([*parts.values()], dim=1), *others)

    one, other = Objective(module, poisson_loss), Objective(InParts(module), joined(poisson_loss))
    g = torch.randn(3, one.size).double()
    found, expected = (
        factorize(EKFAC(fisher="sampled", distribution=draw), objective, rows)
        .solve(g, damping=0.1)
        .x
        for objective, draw in ((other, joined(poisson)), (one, poisson))
    )
    assert_close(found, expected)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_distribution_from_which_nothing_is_drawn_is_refused(fisher):
    objective = Objective(nn.Linear(2, 2).double(), "mse")
    rows = Rows(torch.randn(4, 2).double(), torch.randn(4, 2).double())
    with pytest.raises(ValueError, match=f"{fisher!r} draws none; add fisher='sampled'"):
        factorize(EKFAC(fisher=fisher, distribution="gaussian"), objective, rows)
    with pytest.raises(ValueError, match="known are categorical, gaussian, bernoulli"):
        factorize(EKFAC(fisher="sampled", distribution="binomial"), objective, rows)


STUDY = """\
import torch
from torch import nn


def build():
    return nn.Linear(3, 1)


def loss(output, target):
    return (output.exp() - target[:, None] * output).sum(1)


def draw(output, target, generator):
    return torch.poisson(output.exp(), generator=generator)[:, 0] * {factor}
"""


def test_a_study_draws_by_its_own_code_and_notices_when_that_changes(tmp_path):
    settings = {"fisher": "sampled", "distribution": "tiny_model:draw"}
    project = Project(
        tmp_path,
        model=STUDY.format(factor=1),
        methods={"direct": None, "cg": None, "ekfac": settings},
        perturbation=None,
        damping=0.1,
    )
    project.write_settings(model={"loss": "tiny_model:loss"})
    project.refresh()
    eigenvalues = project.results.open("ekfac/curvature")["eigenvalues"].values
    project.write_model(STUDY.format(factor="2 / 2"))
    project.refresh()
    changed = project.results.store.version("ekfac/curvature").number
    assert changed > 1
    assert (project.results.open("ekfac/curvature")["eigenvalues"].values == eigenvalues).all()
    project.write_model(STUDY.format(factor=3))
    with pytest.raises(ModelError, match="not the negative log-likelihood"):
        project.refresh()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_of_cross_entropy_are_written_out_and_others_are_looked_at(dtype, monkeypatch):
    outputs = torch.randn(6, 4, dtype=dtype)
    y = torch.tensor([0, 3, -100, 2, 2, 1])
    no_draws = torch.Generator()

    def squares(loss, target):
        roots = output_roots(loss, outputs, target, fisher="exact", generator=no_draws).double()
        return torch.einsum("cna,cnb->nab", roots, roots)

    p = outputs.double().softmax(1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected[2] = 0.0
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {}

    def doubled(output, target):
        return 2 * F.cross_entropy(output, target, reduction="none")

    assert_close(squares(doubled, y), 2 * expected, **tolerance)
    probabilities = torch.full_like(outputs, 0.25)
    whole = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert_close(squares(cross_entropy, probabilities), whole, **tolerance)
    monkeypatch.setattr("influence_dag.curvature.kronecker_fisher.Probes", None)  # not asked
    assert_close(squares(cross_entropy, y), expected, **tolerance)
