"""Losses of batches: what each row is given, and which batches can be made of that."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import influence_dag as idag
from influence_dag.errors import ModelError
from influence_dag.losses import (
    cross_entropy,
    ignored_class,
    next_token,
    per_sample_loss,
    reduced_loss,
)
from influence_dag.objective.objective import Objective, Rows

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64)


@pytest.fixture
def outputs():
    return torch.randn(7, 3, dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 1, 0, 2, 2])


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)

    def forward(self, output, target):
        return self.inner(output, target)


def check(loss, output, target, weights=None):
    reduced_loss(loss).check(output, target, weights, tolerance=1e-9)


KNOWN = {
    "module": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
    "partial": functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS),
    "partial of a sum": functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS, reduction="sum"),
    "own, one a row": lambda f, y: F.cross_entropy(f, y, weight=CLASS_WEIGHTS, reduction="none"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_class_weights_that_are_seen_multiply_the_losses_of_rows(name, outputs, labels):
    expected = F.cross_entropy(outputs, labels, weight=CLASS_WEIGHTS, reduction="none")
    assert_close(reduced_loss(KNOWN[name])(outputs, labels), expected)
    check(KNOWN[name], outputs, labels)


@pytest.mark.parametrize(
    "loss",
    [lambda f, y: F.cross_entropy(f, y, weight=CLASS_WEIGHTS), Own()],
    ids=["lambda", "own module"],
)
def test_class_weights_that_cancel_in_batches_of_one_are_refused_with_the_cure(
    loss, outputs, labels
):
    with pytest.raises(ModelError, match=r"weighs rows.*reduction='none'.*\(x, y, weights\)"):
        check(loss, outputs, labels)


def test_the_weights_of_rows_that_explain_the_batch_are_the_cure(outputs, labels):
    def weighted(f, y):
        return F.cross_entropy(f, y, weight=CLASS_WEIGHTS)

    check(weighted, outputs, labels, CLASS_WEIGHTS[labels])
    with pytest.raises(ModelError, match="weighs rows"):
        check(weighted, outputs, labels, 1 + torch.arange(7.0))


def hardest_half(output, target):
    return F.cross_entropy(output, target, reduction="none").topk(len(target) // 2 + 1)[0].mean()


BATCHES = {
    "mean of the hardest half": hardest_half,
    "root of the mean": lambda f, y: F.mse_loss(f[:, 0], y.double()).sqrt(),
    "centred": lambda f, y: (F.cross_entropy(f, y, reduction="none") - f.mean()).mean() + f.std(),
    "broadcast": lambda f, y: F.mse_loss(f[:, :1], y.double()),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BATCHES)
def test_a_loss_of_batches_that_is_no_mean_of_its_rows_is_refused(name, outputs, labels):
    with pytest.raises(ModelError, match="of a batch"):
        check(BATCHES[name], outputs, labels)


def test_ignored_positions_are_left_out_of_a_rows_mean_however_the_loss_is_written():
    output = torch.randn(5, 3, 4, dtype=torch.float64)
    target = torch.randint(0, 3, (5, 4))
    for row in range(4):
        target[row, 1 + row :] = -100
    target[4] = -100
    each = [
        F.cross_entropy(f[None, :, :k], y[None, :k])
        for k, f, y in zip(range(1, 5), output[:4], target[:4], strict=True)
    ]
    expected = torch.stack([*each, torch.zeros((), dtype=torch.float64)])
    for loss in (cross_entropy, reduced_loss(F.cross_entropy), reduced_loss(nn.CrossEntropyLoss())):
        assert_close(loss(output, target), expected)
    assert_close(reduced_loss(nn.CrossEntropyLoss(ignore_index=-100))(output, target), expected)


def test_a_batch_of_rows_without_a_label_says_nothing_against_torchs_mean():
    output, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, -100, 2, -100])
    for rows in ([0, 1, 2, 3], [1], [1, 3]):
        check(nn.CrossEntropyLoss(), output[rows], target[rows])
    labelled = F.cross_entropy(output[::2], target[::2], reduction="none")
    assert_close(reduced_loss(nn.CrossEntropyLoss())(output, target)[::2], labelled)


def test_a_mean_over_all_labelled_positions_weighs_rows_by_their_number():
    output, target = torch.randn(3, 3, 4, dtype=torch.float64), torch.randint(0, 3, (3, 4))
    check(nn.CrossEntropyLoss(), output, target)
    target[0, 1:] = -100
    with pytest.raises(ModelError, match="ignored positions"):
        check(nn.CrossEntropyLoss(), output, target)
    check(nn.CrossEntropyLoss(), output, target, torch.tensor([1.0, 4.0, 4.0]))


def test_class_weights_at_positions_multiply_positions():
    output, target = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(0, 3, (4, 5))
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    values = F.cross_entropy(output, target, weight=CLASS_WEIGHTS, reduction="none")
    assert_close(reduced_loss(loss)(output, target), values.mean(1))
    check(loss, output, target)


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.MSELoss(),
        nn.SmoothL1Loss(beta=0.3),
        nn.HuberLoss(delta=0.3),
        nn.L1Loss(),
        nn.KLDivLoss(reduction="batchmean"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_of_numbers_are_torchs_on_batches_of_one(loss):
    output, target = torch.randn(6, 3), torch.rand(6, 3)
    each = [loss(output[i : i + 1], target[i : i + 1]) for i in range(6)]
    assert_close(reduced_loss(loss)(output, target), torch.stack(each))
    reduced_loss(loss).check(output, target, None, tolerance=1e-5)


LABELS = {
    "int32": lambda y: y.int(),
    "whole floats": lambda y: y.double(),
    "a column": lambda y: y[:, None],
    "uint8": lambda y: y.byte(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_whole_kind_are_classes(kind, outputs, labels):
    expected = F.cross_entropy(outputs, labels, reduction="none")
    for loss in (cross_entropy, reduced_loss(F.cross_entropy), reduced_loss(nn.CrossEntropyLoss())):
        assert_close(loss(outputs, LABELS[kind](labels)), expected)


def test_booleans_are_two_classes_and_numbers(outputs):
    truth = torch.tensor([True, False, True, True, False, False, True])
    assert_close(
        cross_entropy(outputs[:, :2], truth),
        F.cross_entropy(outputs[:, :2], truth.long(), reduction="none"),
    )
    assert_close(
        reduced_loss(nn.BCEWithLogitsLoss())(outputs[:, :1], truth),
        F.binary_cross_entropy_with_logits(outputs[:, 0], truth.double(), reduction="none"),
    )


def test_targets_in_a_structure_go_to_the_loss_as_they_are(outputs, labels):
    def several(f, y):
        return F.cross_entropy(f["logits"], y["label"]) + (f["aux"][0] - y["value"]).square().mean()

    output = {"logits": outputs, "aux": (outputs[:, 0], None), "name": "x"}
    target = {"label": labels, "value": torch.arange(7.0, dtype=torch.float64)}
    expected = F.cross_entropy(outputs, labels, reduction="none")
    expected = expected + (outputs[:, 0] - target["value"]).square()
    assert_close(reduced_loss(several)(output, target), expected)
    check(several, output, target)


def test_outputs_without_tensors_are_refused_by_their_kind(labels):
    class Box:
        pass

    with pytest.raises(ModelError, match="object of type Box"):
        reduced_loss(lambda f, y: f.value)(Box(), labels)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", F.mse_loss, nn.BCEWithLogitsLoss()])
def test_targets_are_held_against_the_outputs_that_they_belong_to(loss):
    """Channels last against channels first are as many numbers, each beside another's output."""
    of_rows = per_sample_loss(loss) if isinstance(loss, str) else reduced_loss(loss)
    output, target = torch.randn(5, 2, 3), torch.rand(5, 2, 3)
    right = of_rows(output, target)
    for same in (target[:, :, None], target.flatten(1), target[..., None]):
        assert torch.equal(of_rows(output, same), right)
    assert torch.equal(of_rows(output.flatten(1), target), right)
    for other in (target.transpose(1, 2), torch.rand(5, 3, 1, 2)):
        with pytest.raises(ModelError, match=r"in axes of other lengths; bring the target's axes"):
            of_rows(output, other)


@pytest.mark.parametrize(
    "loss",
    ["cross_entropy", "mse", "bce_with_logits", nn.CrossEntropyLoss(), F.cross_entropy, F.l1_loss],
    ids=lambda loss: getattr(loss, "__name__", str(loss)),
)
def test_complex_targets_are_refused_where_their_imaginary_part_would_be_dropped(loss, outputs):
    wants_labels = loss in ("cross_entropy", F.cross_entropy) or isinstance(loss, nn.Module)
    target = torch.arange(7) % 3 + 1j if wants_labels else (outputs > 0) + 1j
    model = idag.TorchTwiceDifferentiable(nn.Linear(3, 3).double(), loss)
    with pytest.raises(ModelError, match=r"the targets are complex.* drop the imaginary part"):
        idag.compute_influences(model, [(outputs, target)], hessian_regularization=0.5)
    of_rows = per_sample_loss(loss) if isinstance(loss, str) else reduced_loss(loss)
    with pytest.raises(ModelError, match="the targets are complex"):
        of_rows(outputs, target)


def replaced(loss):
    forward = loss.forward
    loss.forward = lambda output, target: 3 * forward(output, target)


CHANGES = {
    "hook": lambda loss: loss.register_forward_hook(lambda _, given, value: 3 * value),
    "forward of its own": replaced,
    "hook before": lambda loss: loss.register_forward_pre_hook(
        lambda _, given: (given[0], given[1].roll(1, dims=-1))
    ),
}


@pytest.mark.parametrize("kind", [nn.MSELoss, nn.L1Loss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("change", CHANGES)
def test_a_module_of_torchs_that_was_changed_is_one_of_ones_own(change, kind, outputs):
    target = (outputs > 0.3).double()
    loss = kind()
    CHANGES[change](loss)
    expected = torch.stack([loss(f[None], t[None]) for f, t in zip(outputs, target, strict=True)])
    assert_close(reduced_loss(loss)(outputs, target), expected)
    check(loss, outputs, target)


class Scaled(nn.Module):
    """Predictions, and their variances: the same ones for all rows, or once a row."""

    def __init__(self, *, learned, expanded=False):
        super().__init__()
        self.inner, self.expanded = nn.Linear(3, 5).double(), expanded
        variances = torch.linspace(0.5, 2, 5, dtype=torch.float64)
        self.variances = nn.Parameter(variances) if learned else nn.Buffer(variances)

    def forward(self, x):
        scale = self.variances
        return self.inner(x), scale.expand(len(x), -1) if self.expanded else scale


def likelihood(output, target):
    mean, variance = output
    return ((mean - target).square() / variance + variance.log()).mean()


def in_place(output, target):
    mean, variance = output
    return likelihood((mean, variance.clamp_(min=1e-3)), target)


@pytest.mark.parametrize("loss", [likelihood, in_place])
@pytest.mark.parametrize("learned", [True, False])
def test_an_output_of_all_rows_alike_is_refused_to_a_loss_of_batches_of_one(learned, loss):
    # Of 5 rows each was given one of the five variances, and of any other number all of them.
    x, y = torch.randn(517, 3).double(), torch.randn(517, 5).double()
    model = idag.TorchTwiceDifferentiable(Scaled(learned=learned), loss)
    with pytest.raises(ModelError, match=r"an output of shape \(5,\).* return it once a row"):
        idag.compute_influences(model, [(x, y)], [(x[:6], y[:6])], hessian_regularization=1.0)


def test_an_output_of_all_rows_alike_that_is_not_used_is_let_be():
    x, y = torch.randn(7, 3).double(), torch.randn(7, 5).double()
    loss = reduced_loss(lambda output, target: (output[0] - target).square().mean())
    Objective(Scaled(learned=False), loss).check(Rows(x, y))


def test_an_output_that_is_repeated_for_each_row_is_each_rows():
    x, y = torch.randn(5, 3).double(), torch.randn(5, 5).double()
    objective = Objective(Scaled(learned=True, expanded=True), reduced_loss(likelihood))
    objective.check(Rows(x, y))
    each = [likelihood(objective.module(x[i, None]), y[i, None]) for i in range(5)]
    assert_close(objective.losses(objective.params, Rows(x, y)), torch.stack(each))


def test_positions_with_probabilities_for_targets_are_averaged():
    output = torch.randn(4, 3, 5, dtype=torch.float64)
    target = torch.rand(4, 3, 5, dtype=torch.float64).softmax(1)
    expected = -(target * output.log_softmax(1)).sum(1).mean(1)
    assert_close(cross_entropy(output, target), expected)
    assert_close(reduced_loss(nn.CrossEntropyLoss())(output, target), expected)


SEVERAL = {
    "of torch's": (nn.CrossEntropyLoss(reduction="none"), r"one number"),
    "of a row": (lambda f, y: (f[0], y[0]), r"has to reduce each sample to one number"),
    "of a batch": (
        lambda f, y: f.sum() if len(f) == 1 else f.sum(0),
        r"the loss returns \(3,\) for a batch of 7 rows",
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_losses_of_several_numbers_are_refused(case, outputs, labels):
    loss, said = SEVERAL[case]
    if case == "of torch's":
        outputs, labels = outputs[..., None].expand(-1, -1, 2), labels[:, None].expand(-1, 2)
    with pytest.raises(ModelError, match=said):
        check(loss, outputs, labels)


def test_a_loss_of_torchs_takes_tensors(outputs, labels):
    with pytest.raises(ModelError, match=r"torch's losses take one tensor each: write a loss"):
        reduced_loss(nn.CrossEntropyLoss())({"logits": outputs}, labels)


def test_next_tokens_need_logits_at_every_position():
    with pytest.raises(ModelError, match=r"next_token: the model returns \(4, 3\), .* \(4, 5\)"):
        next_token(torch.randn(4, 3), torch.zeros(4, 5).long())


LEAVES_OUT = {
    "by name": (cross_entropy, -100),
    "torch's": (nn.CrossEntropyLoss(), -100),
    "another class": (nn.CrossEntropyLoss(ignore_index=7), 7),
    "a function": (functools.partial(F.cross_entropy, ignore_index=2), 2),
    "likelihoods": (nn.NLLLoss(ignore_index=0), 0),
    "numbers": (nn.MSELoss(), None),
    "one's own": (lambda output, target: F.cross_entropy(output, target), None),
}


@pytest.mark.parametrize("case", LEAVES_OUT)
def test_the_class_that_a_loss_leaves_out_is_known(case):
    loss, expected = LEAVES_OUT[case]
    found = ignored_class(loss if loss is cross_entropy else reduced_loss(loss))
    assert found == expected
