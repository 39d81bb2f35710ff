import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import ModelError, NotConvergedError
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.study.model import FitSettings
from influence_dag.suspicion import (
    combined_suspicion,
    doubt,
    knn_shapley,
    neighbour_disagreement,
    trusted,
    votes,
)
from influence_dag.validation.label_errors import (
    flip_labels,
    label_errors,
    points_of,
    self_influences,
)
from influence_dag.validation.out_of_fold import class_log_chances, draw_folds, out_of_fold
from influence_dag.validation.representations import representations


@pytest.mark.parametrize("seed", range(3))
def test_self_influence_finds_the_flipped_digits(softmax, digits, seed):
    result = label_errors(softmax, digits[0], weight_decay=1e-2, share=0.05, seed=seed, folds=0)
    found = result.summary()["self_influence"]
    assert found["auc"] >= 0.99
    assert found["found_in_top_10_percent"] >= 0.95
    assert found["found_in_top_20_percent"] == 1.0
    assert found["auc"] == pytest.approx(roc_auc_score(result.flipped, result.self_influence))
    by_loss = result.summary()["loss"]["auc"]
    assert by_loss == pytest.approx(roc_auc_score(result.flipped, result.loss))


def test_the_model_that_is_ranked_was_fitted_to_the_flipped_labels(softmax, digits):
    result = label_errors(softmax, digits[0], weight_decay=1e-2, share=0.1, folds=0)
    changed = result.labels != digits[0].y.numpy()
    assert np.array_equal(changed, result.flipped)
    assert changed.sum() == 150
    x, y = digits[0].x, torch.tensor(result.labels)
    W = torch.zeros(650, dtype=torch.float64, requires_grad=True)

    def penalised():
        logits = x @ W[:640].view(10, 64).T + W[640:]
        return F.cross_entropy(logits, y, reduction="none"), 5e-3 * W @ W

    optimizer = torch.optim.LBFGS(
        [W],
        max_iter=500,
        tolerance_grad=1e-8,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        losses, penalty = penalised()
        (losses.mean() + penalty).backward()
        return losses.mean() + penalty

    optimizer.step(closure)
    assert np.abs(penalised()[0].detach().numpy() - result.loss).max() <= 1e-3


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_self_influences_are_the_diagonal_of_the_training_rows_influences(curvature):
    module = nn.Linear(3, 3).double()  # linear in θ: Hessian and Gauss-Newton agree
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 3
    seen = self_influences(
        Objective(module, "cross_entropy"), Rows(x, y), damping=0.1, curvature=curvature
    )
    influences = reference.influences(module, F.cross_entropy, (x, y), (x, y), 0.1)
    assert torch.allclose(seen, influences.diagonal(), rtol=1e-9)


def test_a_fit_that_ends_early_is_refused_or_ranked_as_it_is(softmax, digits):
    early = {"weight_decay": 1e-2, "start": torch.zeros(650), "max_steps": 1, "folds": 0}
    with pytest.raises(NotConvergedError, match="1 of 1 refits missed tolerance=1e-06"):
        label_errors(softmax, digits[0], **early)
    kept = label_errors(softmax, digits[0], **early, on_failure="keep").summary()
    assert kept["converged"] == 0
    assert kept["worst_gradient_norm"] > 1e-6
    assert kept["self_influence"]["auc"] > 0.5


@pytest.fixture(scope="module")
def flipped(softmax, digits):
    return label_errors(softmax, digits[0], weight_decay=1e-2, share=0.05, seed=7, test=digits[1])


def test_neighbours_and_model_together_find_what_either_finds(flipped):
    found = {name: told["auc"] for name, told in flipped.summary().items() if type(told) is dict}
    assert set(found) == {*flipped.rankings, "combined"}
    assert found["combined"] >= max(found.values()) - 5e-4
    assert min(found.values()) > 0.98
    known = flipped.evidence
    assert np.array_equal(flipped.combined, combined_suspicion(flipped.rankings, known))
    label = np.arange(1500), known.labels
    assert np.allclose(-known.out_of_fold[label], flipped.out_of_fold_loss), "cross entropy"
    assert known.trust[0] > known.trust[1] > 1, "neighbours know digits better than softmax does"


@pytest.fixture(scope="module")
def clouds():
    """Three clouds of training and of test rows that overlap, and a linear model of them."""
    generator = torch.Generator().manual_seed(0)

    def rows(n):
        y = torch.arange(n) % 3
        x = torch.randn(n, 2, generator=generator) + torch.eye(3)[y][:, :2] * 2
        return Rows(x.double(), y)

    return Objective(nn.Linear(2, 3).double(), "cross_entropy"), rows(60), rows(30)


def test_neighbours_are_as_many_as_asked_for(clouds):
    objective, train, test = clouds
    found = label_errors(
        objective, train, weight_decay=0.01, share=0.2, test=test, neighbours=3, folds=4, seed=2
    )
    points, others, truth = train.x.numpy(), test.x.numpy(), test.y.numpy()
    expected = neighbour_disagreement(points, found.labels, k=3)
    np.testing.assert_allclose(found.neighbour_disagreement, expected)
    values = knn_shapley(points, found.labels, others, truth, k=3)
    np.testing.assert_allclose(found.knn_shapley, values)
    said = votes(points, found.labels, others, truth, k=3)
    np.testing.assert_allclose(found.evidence.neighbours, said.neighbours)
    module = nn.Linear(2, 3).double()
    y = torch.tensor(found.labels)
    fit(module, "cross_entropy", Rows(train.x, y), FitSettings(weight_decay=0.01, tolerance=1e-9))
    right = (module(test.x).argmax(1) == test.y).numpy()
    assert found.evidence.trust == pytest.approx(trusted(said.right, right))


def test_without_test_rows_views_are_trusted_by_what_they_say_of_rows_they_have_not_seen(clouds):
    objective, train, _ = clouds
    found = label_errors(
        objective, train, weight_decay=0.01, share=0.2, neighbours=7, folds=4, seed=2
    )
    assert found.knn_shapley is None
    known = found.evidence
    np.testing.assert_allclose(
        known.neighbours, votes(train.x.numpy(), found.labels, k=7).neighbours
    )
    right = [view.argmax(1) == found.labels for view in (known.neighbours, known.out_of_fold)]
    assert known.trust == trusted(*right) != (1, 1)
    alone = label_errors(objective, train, weight_decay=0.01, share=0.2, folds=0, seed=2)
    assert alone.evidence.trust == (1, 1)
    assert alone.out_of_fold_loss is None
    without = label_errors(
        objective, train, weight_decay=0.01, share=0.2, folds=0, neighbours=0, seed=2
    )
    assert (without.evidence, without.neighbour_disagreement) == (None, None)


def test_rows_are_ranked_at_the_damping_that_is_said(clouds):
    objective, train, _ = clouds
    options = {"weight_decay": 0.01, "share": 0.2, "folds": 0, "neighbours": 0, "seed": 2}
    found = label_errors(objective, train, **options, tolerance=1e-9)
    y = torch.tensor(found.labels)
    module = nn.Linear(2, 3).double()
    settings = FitSettings(weight_decay=0.01, tolerance=1e-9)
    fit(module, "cross_entropy", Rows(train.x, y), settings)
    for damping in (None, 0.3):
        told = label_errors(objective, train, **options, tolerance=1e-9, damping=damping)
        expected = reference.influences(
            module, F.cross_entropy, (train.x, y), (train.x, y), damping or 0.01
        )
        np.testing.assert_allclose(told.self_influence, expected.diagonal(), rtol=1e-5)
    losses = F.cross_entropy(module(train.x), y, reduction="none").detach()
    np.testing.assert_allclose(found.loss, losses, rtol=1e-5)


def test_a_loss_out_of_fold_is_of_a_model_that_has_not_seen_the_row(flipped, digits):
    fold, y = draw_folds(1500, folds=5, seed=7), torch.tensor(flipped.labels)
    seen, unseen = fold != 3, fold == 3
    module = nn.Linear(64, 10).double()
    settings = FitSettings(weight_decay=1e-2, tolerance=1e-8)
    fit(module, "cross_entropy", Rows(digits[0].x[seen], y[seen]), settings)
    expected = F.cross_entropy(module(digits[0].x[unseen]), y[unseen], reduction="none").detach()
    assert np.allclose(flipped.out_of_fold_loss[unseen.numpy()], expected, atol=1e-4)


def test_folds_are_of_even_sizes_and_at_most_one_a_row():
    counts = draw_folds(11, folds=4, seed=1).bincount()
    assert sorted(counts.tolist()) == [2, 3, 3, 3]
    with pytest.raises(ModelError, match="12 folds of 11 rows"):
        draw_folds(11, folds=12)


def test_the_penultimate_space_is_what_the_last_linear_layer_takes():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
    objective = Objective(module, "cross_entropy")
    assert torch.equal(representations(objective, Rows(x, y)), module[:2](x).detach())
    bent = Objective(nn.Sequential(module, nn.Tanh()), "cross_entropy")
    assert representations(bent, Rows(x, y)) is None
    with pytest.raises(ModelError, match="take space='input'"):
        points_of(bent, Rows(x, y), "penultimate")
    with pytest.raises(ModelError, match="take space='penultimate'"):
        points_of(objective, Rows({"x": x}, y), "input")


def test_labels_are_mistaken_for_the_classes_that_are_named():
    labels = torch.arange(3).repeat(20)
    other, flipped = flip_labels(labels, share=0.5, mistaken={0: 1, 1: 0, 2: 1})
    assert torch.equal(other[flipped], torch.tensor([1, 0, 1])[labels[flipped]])
    assert torch.equal(other[~flipped], labels[~flipped])


def test_flipped_labels_are_other_classes_that_occur():
    labels = torch.tensor([3, 7, 7, 9] * 50)
    other, flipped = flip_labels(labels, share=0.25, seed=1)
    assert flipped.sum() == 50
    assert torch.equal(other != labels, flipped)
    assert set(other.tolist()) == {3, 7, 9}
    again, _ = flip_labels(labels, share=0.25, seed=1)
    assert torch.equal(again, other)
    assert not torch.equal(flip_labels(labels, share=0.25, seed=2)[0], other)


@pytest.mark.parametrize(
    "labels", [torch.rand(5), torch.zeros(5).long(), torch.eye(2).long()], ids=["real", "one", "2d"]
)
def test_labels_that_cannot_be_flipped_are_refused(labels):
    with pytest.raises(ModelError, match="integers of two classes or more"):
        flip_labels(labels, share=0.5)


@pytest.mark.parametrize(("share", "flips"), [(0.01, 0), (0.99, 20)])
def test_a_share_that_leaves_nothing_to_be_found_is_refused(share, flips):
    with pytest.raises(ModelError, match=rf"share={share} flips {flips} of 20 labels"):
        flip_labels(torch.arange(20) % 2, share=share)


def test_rows_without_a_label_are_of_no_class():
    torch.manual_seed(0)
    x, y = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
    labelled, y[:5] = Rows(x[5:], y[5:]), -100
    objective, rows = Objective(nn.Linear(4, 3).double(), "cross_entropy"), Rows(x, y)
    with pytest.raises(ModelError, match="5 of 40 training rows have no label"):
        label_errors(objective, rows, weight_decay=0.1)
    found = out_of_fold(objective, rows, folds=3, weight_decay=0.1)
    assert found.classes is None
    assert not found.losses[:5].any()
    assert out_of_fold(objective, labelled, folds=3, weight_decay=0.1).classes.shape == (35, 3)


def test_a_class_that_a_loss_rules_out_leaves_the_others_what_they_are():
    def loss(output, target):  # infinite where a probability vanishes
        return -output.softmax(1).log().gather(1, target[:, None])[:, 0]

    torch.manual_seed(0)
    objective = Objective(nn.Linear(2, 3).double(), loss)
    rows = Rows(torch.randn(30, 2).double(), torch.randint(0, 3, (30,)))
    chances = [
        class_log_chances(objective, factor * objective.params, rows, torch.arange(3))
        for factor in (1, 2000)
    ]
    assert np.isfinite(chances).all()
    assert chances[1].min() == pytest.approx(-708, abs=1)
    outputs = objective.outputs(2000 * objective.params, rows.x)
    assert (chances[1].argmax(1) == outputs.argmax(1).numpy(force=True)).all()
    assert np.isfinite(doubt(chances, rows.y.numpy())).all()


def test_test_rows_without_a_label_are_nobodys_mistakes(softmax, digits):
    train, test = (Rows(rows.x[:60], rows.y[:60]) for rows in digits)
    bare = Rows(test.x, test.y.where(torch.arange(60) % 3 != 0, -100))
    kept = test[torch.arange(60) % 3 != 0]
    asked = {"weight_decay": 1e-1, "seed": 7, "folds": 0, "curvature": "gauss_newton"}
    found, wanted = (label_errors(softmax, train, test=each, **asked) for each in (bare, kept))
    assert found.rankings.keys() == wanted.rankings.keys()
    for name, values in wanted.rankings.items():
        np.testing.assert_allclose(found.rankings[name], values, err_msg=name)
    np.testing.assert_allclose(found.combined, wanted.combined)
