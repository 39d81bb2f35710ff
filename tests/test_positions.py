"""Influences of positions: of each token of a training row, on each token of a test row."""

import pytest
import torch
from tiny_project import Project
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import influence_dag as idag
from influence_dag.errors import ModelError
from influence_dag.losses import cross_entropy
from influence_dag.losses.positions import position_losses

DAMPING, LENGTH, CLASSES = 0.2, 4, 3


class Tagger(nn.Module):
    """A class for each token, from all tokens before it; as numbers where `numbers`."""

    def __init__(self, numbers=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Embedding(5, 3), nn.Linear(6, 4)
        self.out = nn.Linear(4, 1 if numbers else CLASSES)
        self.numbers = numbers

    def forward(self, tokens):
        hidden = self.embed(tokens)
        hidden = torch.tanh(self.mix(torch.cat([hidden, hidden.cumsum(1)], 2)))
        found = self.out(hidden)
        return found.squeeze(2) if self.numbers else found.transpose(1, 2)


def rows(n, seed, numbers=False):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, (n, LENGTH), generator=generator)
    if numbers:
        return tokens, torch.randn(n, LENGTH, generator=generator).double()
    labels = torch.randint(CLASSES, (n, LENGTH), generator=generator)
    labels[torch.rand(n, LENGTH, generator=generator) < 0.4] = -100
    labels[:, 1], labels[0] = 0, -100  # one row without any label
    return tokens, labels


CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0]).double()


def class_terms(f, y):
    count = (y != -100).sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(f, y, reduction="none") / count


def huber_terms(f, y):
    return F.huber_loss(f, y, reduction="none", delta=0.5) / LENGTH


LOSSES = {
    "cross_entropy": ("cross_entropy", class_terms),
    "torch's, summed": (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda f, y: F.cross_entropy(f, y, reduction="none"),
    ),
    "next tokens": (
        "next_token",
        lambda f, y: F.pad(class_terms(f[:, :, :-1], y[:, 1:]), (1, 0)),
    ),
    "coins": (
        "bce_with_logits",
        lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="none") / LENGTH,
    ),
    "numbers": ("mse", lambda f, y: (f - y).square() / LENGTH),
    "torch's numbers": (nn.HuberLoss(delta=0.5), huber_terms),
}


def gradients_of_terms(module, terms, x, y):
    """(n, t, p): one backward pass a position, by plain autograd."""
    found = []
    for i in range(len(x)):
        values = terms(module(x[i : i + 1]), y[i : i + 1])[0]
        each = [
            torch.autograd.grad(v, list(module.parameters()), retain_graph=True)
            for v in values * 1.0
        ]
        found.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in each]))
    return torch.stack(found)


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_shares_of_positions_are_autograds_and_add_up_to_the_rows(case):
    loss, terms = case
    numbers = case in (LOSSES["numbers"], LOSSES["torch's numbers"], LOSSES["coins"])
    module = Tagger(numbers).double().eval()
    train, test = rows(70, 1, numbers), rows(5, 2, numbers)  # more than one batch
    if case is LOSSES["coins"]:
        train, test = ((x, (y > 0).double()) for x, y in (train, test))
    weights = torch.rand(70).double()
    loaders = [
        DataLoader(TensorDataset(*train, weights), batch_size=16),
        DataLoader(TensorDataset(*test), batch_size=4),
    ]
    wrapped = idag.TorchTwiceDifferentiable(module, loss)

    def influences(positions=None):
        return idag.compute_influences(
            wrapped, *loaders, inversion_method="ekfac", positions=positions,
            hessian_regularization=DAMPING,
        )  # fmt: skip

    factors = idag.compute_influence_factors(
        wrapped, *loaders, inversion_method="ekfac", hessian_regularization=DAMPING
    ).x
    G = gradients_of_terms(module, terms, *train) * weights[:, None, None]
    of_train = influences("train")
    assert_close(of_train, torch.einsum("jp,itp->jit", factors, G), rtol=1e-8, atol=1e-12)
    whole = influences()
    assert_close(of_train.sum(2), whole, rtol=1e-8, atol=1e-12)
    of_both = influences("both")
    assert of_both.shape == (5, LENGTH, 70, LENGTH)
    assert_close(of_both.sum(1), of_train, rtol=1e-8, atol=1e-12)
    assert_close(of_both.sum(3), influences("test"), rtol=1e-8, atol=1e-12)
    # The inverse is linear: what each test position's gradient gives, from the rows' factors.
    T = gradients_of_terms(module, terms, *test)
    inverse = idag.solve_hvp(
        "ekfac", wrapped, loaders[0], torch.eye(T.shape[2]).double(), hessian_perturbation=DAMPING
    ).x
    assert_close(of_both, torch.einsum("jsp,pq,itq->jsit", T, inverse, G), rtol=1e-8, atol=1e-12)


def test_positions_are_named_in_any_case_as_methods_are():
    loaders = [[rows(n, n)] for n in (9, 2)]
    wrapped = idag.TorchTwiceDifferentiable(Tagger().double().eval(), "cross_entropy")
    found = [
        idag.compute_influences(wrapped, *loaders, hessian_regularization=5.0, positions=name)
        for name in ("train", "Train")
    ]
    assert found[0].shape == (2, 9, LENGTH)
    assert_close(*found)


def test_ignored_positions_have_no_share():
    (x, y), test = rows(9, 1), rows(2, 2)
    loaders = [DataLoader(TensorDataset(*each), batch_size=4) for each in ((x, y), test)]
    wrapped = idag.TorchTwiceDifferentiable(Tagger().double().eval(), "cross_entropy")
    found = idag.compute_influences(
        wrapped, *loaders, hessian_regularization=5.0, positions="train"
    )
    assert (found[:, y == -100] == 0).all()
    assert (found[1, y != -100] != 0).all()


def test_blocks_have_positions_as_well():
    loaders = [DataLoader(TensorDataset(*rows(n, n)), batch_size=4) for n in (9, 2)]
    wrapped = idag.TorchTwiceDifferentiable(Tagger().double().eval(), "cross_entropy")
    shares = idag.compute_influences(
        wrapped, *loaders, hessian_regularization=5.0, positions="both", blocks="layer",
        per_block=True,
    )  # fmt: skip
    whole = idag.compute_influences(wrapped, *loaders, hessian_regularization=5.0, blocks="layer")
    assert set(shares) == {"embed", "mix", "out"}
    assert_close(sum(shares.values()).sum((1, 3)), whole)


def test_layers_without_forward_derivatives_have_positions():
    module = nn.Sequential(nn.Embedding(5, 3), nn.LSTM(3, 4, batch_first=True)).double()

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = module, nn.Linear(4, CLASSES).double()

        def forward(self, tokens):
            return self.out(self.inner(tokens)[0]).transpose(1, 2)

    loaders = [DataLoader(TensorDataset(*rows(n, n)), batch_size=4) for n in (9, 2)]
    wrapped = idag.TorchTwiceDifferentiable(Recurrent().eval(), "cross_entropy")
    settings: dict = {"inversion_method": "identity", "hessian_regularization": 0.0}
    found = idag.compute_influences(wrapped, *loaders, positions="train", **settings)
    assert_close(found.sum(2), idag.compute_influences(wrapped, *loaders, **settings))


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gradient):
        ctx.save_for_backward(x, gradient)
        return gradient * x.cos()

    @staticmethod
    def backward(ctx, *gradients):
        (x, gradient), (h,) = ctx.saved_tensors, gradients
        return (-h * gradient * x.sin(), h * x.cos()) if h.any() else (None, None)


class Sine(torch.autograd.Function):
    """Of the older kind, and it looks at numbers: torch has no several products of it at once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, *gradients):
        return Slope.apply(*ctx.saved_tensors, *gradients)


class Bent(Tagger):
    """Behind a function; for rows that begin with a 0, where all of a batch do, of no network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, tokens):
        found = self.function(super().forward(tokens))
        silent = (tokens[:, 0] == 0)[:, None, None]
        return torch.zeros_like(found) if silent.all() else found.masked_fill(silent, 0.0)


def test_functions_of_the_older_kind_and_batches_without_a_network_have_positions():
    tokens, labels = rows(150, 3)
    tokens[:70, 0], tokens[70:, 0] = 1, 0  # of blocks of 64 rows the last has none
    loader = DataLoader(TensorDataset(tokens, labels), batch_size=150)
    settings: dict = {"inversion_method": "identity", "positions": "train"}
    found = {}
    for function in (torch.sin, Sine.apply):
        wrapped = idag.TorchTwiceDifferentiable(Bent(function).double().eval(), "cross_entropy")
        found[function] = idag.compute_influences(wrapped, loader, **settings)
    assert_close(found[Sine.apply], found[torch.sin])
    assert found[torch.sin][:, 1:70].any()
    assert not found[torch.sin][:, 70:].any()


def test_what_has_no_positions_is_refused():
    x, y = torch.randn(6, 2), torch.arange(6) % 3
    loader = DataLoader(TensorDataset(x, y))
    of_rows = idag.TorchTwiceDifferentiable(nn.Linear(2, 3), "cross_entropy")
    with pytest.raises(ModelError, match=r"\(1, 3\) for 1 rows.*leave `positions` out"):
        idag.compute_influences(of_rows, loader, positions="test", hessian_regularization=1.0)
    tagged = DataLoader(TensorDataset(*rows(6, 1)))
    own = idag.TorchTwiceDifferentiable(
        Tagger(), lambda f, y: F.cross_entropy(f, y, reduction="none").mean(1)
    )
    with pytest.raises(ModelError, match=r"not one a position .*next_token, mse"):
        idag.compute_influences(own, tagged, positions="train", hessian_regularization=9.0)
    known = idag.TorchTwiceDifferentiable(Tagger(), "cross_entropy")
    with pytest.raises(ValueError, match="positions='all' is unknown; choose one of train"):
        idag.compute_influences(known, tagged, positions="all")
    with pytest.raises(ValueError, match="positions are of influence_type='up'"):
        idag.compute_influences(known, tagged, positions="train", influence_type="perturbation")
    measured = idag.TorchTwiceDifferentiable(
        Tagger(), "cross_entropy", measurement=lambda f, y: f.sum((1, 2))
    )
    with pytest.raises(ValueError, match="leave the measurement out"):
        idag.compute_influences(measured, tagged, positions="both")


def test_terms_of_a_picture_keep_its_shape():
    output, target = torch.randn(2, CLASSES, 4, 5), torch.randint(CLASSES, (2, 4, 5))
    terms = position_losses(cross_entropy, output, target)
    assert terms.shape == (2, 4, 5)
    assert_close(terms.sum((1, 2)), cross_entropy(output, target))


STUDY = """\
import test_positions
import torch


class Data(torch.utils.data.Dataset):
    def __init__(self, rows, seed):
        self.x, self.y = test_positions.rows(rows, seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def train():
    return Data(11, 1)


def test():
    return Data(3, 2)


def build():
    return test_positions.Tagger()
"""


@pytest.mark.parametrize("damping", [5.0, [5.0, 9.0]])
def test_a_stored_study_has_positions_when_sliced(damping, tmp_path):
    project = Project(
        tmp_path,
        model=STUDY,
        data={"train": "tiny_model:train", "test": "tiny_model:test", "id": None, "target": None},
        methods={"cg": None, "direct": {}},
        damping=damping,
        perturbation=None,
        store={"chunks": {"test": 2, "train": 4}},
    )
    project.write_settings(
        model={"fit": {"weight_decay": 0.05, "max_steps": 5}, "minimum": "ignore"}
    )
    project.refresh()
    results = project.results
    shares = results.position_influences("direct")
    assert shares.dims[-3:] == ("test", "train", "position")
    assert_close(
        torch.from_numpy(shares.sum("position").values),
        torch.from_numpy(results["direct"].influences.values),
    )
    labels = rows(11, 1)[1].numpy()
    assert (shares.isel(test=1).values[..., labels == -100] == 0).all()
    assert_shown_by_token(results, shares)
    one = {"train": 3, "test": 2}
    assert (shares.isel(one).values == shares.values[..., 2, 3, :]).all()


def assert_shown_by_token(results, shares):
    """A pair of the explorer has the tokens of the training row, each with its share."""
    from influence_dag.explorer.app import Explorer
    from influence_dag.explorer.pair import pair

    explorer = Explorer(results)
    view = explorer.opened.view("direct")
    explorer.maps.compute(view, "2", "3")
    found = pair(view, explorer.contents, explorer.maps, "2", "3", {})
    (shown,) = found["maps"]
    assert shown["tokens"] == rows(11, 1)[0][3].tolist()
    last = shares.isel(damping=-1) if "damping" in shares.dims else shares
    assert shown["values"] == pytest.approx(last.values[2, 3].tolist())
    assert sum(shown["values"]) == pytest.approx(found["influence"])
