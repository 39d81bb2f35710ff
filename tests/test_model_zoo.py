"""Influences end to end, of every kind of model, input and loss, against plain float64 autograd.

Through `compute_influences` with the exact inverse of the whole damped Hessian, at a damping far
below its largest eigenvalues: an inverse of another matrix would not pass.
"""

import pytest
import reference
import torch
from networks import CASES, CLASSES, ROWS, Shifted, Tokens
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import influence_dag as idag
from influence_dag.curvature import Hessian
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows

DAMPING = 0.02
TRAIN, TEST = slice(0, 7), slice(7, ROWS)


def computed(module, loss, x, y, kind="up", **settings):
    """Influences of the training rows on the test rows, from ragged batches."""
    train = [(part(x, some), y[some]) for some in (slice(0, 4), slice(4, 7))]
    return idag.compute_influences(
        idag.TorchTwiceDifferentiable(module, loss),
        train,
        [(part(x, TEST), y[TEST])],
        influence_type=kind,
        hessian_regularization=DAMPING,
        on_indefinite="lu",
        **settings,
    )


def part(x, some):
    return reference.each(lambda tensor: tensor[some], x)


def expected(kind, module, loss, x, y, **settings):
    answer = reference.influences if kind == "up" else reference.perturbation_influences
    rows = [(part(x, some), y[some]) for some in (TRAIN, TEST)]
    return answer(module, loss, *rows, DAMPING, **settings)


def close(actual, wanted):
    assert_close(actual, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))


# Models ---------------------------------------------------------------------------------------


class Forces(nn.Module):
    """The slope of an energy, taken inside by torch.func, row by row."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 1)

    def energy(self, x):
        return self.outer(torch.tanh(self.inner(x))).sum()

    def forward(self, x):
        return torch.func.vmap(torch.func.grad(self.energy))(x)


class ForcesByHand(Forces):
    def forward(self, x):
        slope = 1 - torch.tanh(self.inner(x)).square()
        return (slope * self.outer.weight) @ self.inner.weight


@pytest.mark.parametrize("kind", ["up", "perturbation"])
def test_a_model_that_differentiates_by_torch_func(kind):
    torch.manual_seed(0)
    module, by_hand = Forces().double(), ForcesByHand().double()
    by_hand.load_state_dict(module.state_dict())
    x, y = torch.randn(2, ROWS, 3, dtype=torch.float64)
    wanted = expected(kind, by_hand, F.mse_loss, x, y)
    close(computed(module, F.mse_loss, x, y, kind), wanted)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_influences_of_every_kind_of_model(name):
    """And of every continuous feature; autograd's factors are made once for both."""
    module, x, y = CASES[name].make()
    train, test = ((part(x, some), y[some]) for some in (TRAIN, TEST))
    factors = reference.influence_factors(module, F.cross_entropy, train, test, DAMPING)
    gradients = reference.per_sample_gradients(module, F.cross_entropy, *train)
    close(computed(module, "cross_entropy", x, y), factors @ gradients.T)
    if not CASES[name].tokens:
        actual = computed(module, "cross_entropy", x, y, "perturbation")
        assert actual.shape == (ROWS - 7, 7, *CASES[name].shape)
        close(actual, reference.mixed_products(module, F.cross_entropy, factors, *train))


# Several inputs -------------------------------------------------------------------------------


class Record(nn.Module):
    """An image, numbers and a token."""

    def __init__(self):
        super().__init__()
        self.look, self.embed = nn.Conv2d(1, 4, 3), nn.Embedding(5, 4)
        self.outer = nn.Linear(4, CLASSES)

    def forward(self, image, numbers, token):
        seen = torch.tanh(self.look(image)).amax((2, 3))
        return self.outer(seen + numbers * self.embed(token))


class Padded(nn.Module):
    """Sequences of several lengths: an encoder with a padding mask, a mean over what is there."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.inner, self.outer = nn.TransformerEncoder(layer, 1), nn.Linear(4, CLASSES)

    def forward(self, x, padding):
        there = ~padding[..., None]
        hidden = self.inner(x, src_key_padding_mask=padding)
        return self.outer((hidden * there).sum(1) / there.sum(1))


def record():
    x = {
        "image": torch.randn(ROWS, 1, 4, 4).double(),
        "token": torch.randint(0, 5, (ROWS,)),
        "numbers": torch.randn(ROWS, 4).double(),
    }
    return Record().double().eval(), x, ["image", "numbers"]


def padded():
    lengths = torch.randint(1, 5, (ROWS, 1))
    x = torch.randn(ROWS, 4, 4).double(), torch.arange(4).expand(ROWS, -1) >= lengths
    return Padded().double().eval(), x, [0]


@pytest.fixture(params=[record, padded], ids=["dict", "tuple"])
def several(request):
    """A module of several inputs, the inputs, and which of them are continuous."""
    return *request.param(), torch.randint(0, CLASSES, (ROWS,))


def test_influences_of_models_with_several_inputs(several):
    module, x, _, y = several
    close(computed(module, "cross_entropy", x, y), expected("up", module, F.cross_entropy, x, y))


def test_perturbation_influences_of_each_continuous_input(several):
    module, x, continuous, y = several
    actual = computed(module, "cross_entropy", x, y, "perturbation")
    for name in continuous:
        close(actual[name], expected("perturbation", module, F.cross_entropy, x, y, of=name))
    found = actual if isinstance(actual, dict) else range(len(actual))
    assert [name for name in found if actual[name] is not None] == continuous


# Losses ---------------------------------------------------------------------------------------


def pinball(output, target):
    """The loss of the 0.8 quantile, one value a sample: a user's own."""
    error = target - output.squeeze(1)
    return torch.maximum(0.8 * error, -0.2 * error) + 0.1 * error.square()


def gaussian(output, target):
    """Two outputs, a mean and a log variance, for one target: reduced to one number."""
    return F.gaussian_nll_loss(output[:, 0], target, output[:, 1].exp())


def real(*shape):
    return torch.randn(ROWS, *shape).double()


LOSSES = {  # outputs of the network, loss for the package, the same reduced by mean, targets
    "regression": (1, "mse", lambda f, y: F.mse_loss(f[:, 0], y), real),
    "several outputs": (4, "mse", F.mse_loss, lambda: real(4)),
    "huber": (1, nn.SmoothL1Loss(), nn.SmoothL1Loss(), lambda: 3 * real(1)),
    "binary": (
        1,
        "bce_with_logits",
        lambda f, y: F.binary_cross_entropy_with_logits(f[:, 0], y.double()),
        lambda: torch.randint(0, 2, (ROWS,)),
    ),
    "several labels": (
        4,
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(),
        lambda: torch.randint(0, 2, (ROWS, 4)).double(),
    ),
    "several classes": (
        5,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda: torch.randint(0, 5, (ROWS,)),
    ),
    "class probabilities": (5, F.cross_entropy, F.cross_entropy, lambda: real(5).softmax(1)),
    "user's own": (1, pinball, lambda f, y: pinball(f, y).mean(), real),
    "user's own, reduced": (2, gaussian, gaussian, real),
}


@pytest.mark.parametrize("kind", ["up", "perturbation"])
@pytest.mark.parametrize("name", LOSSES)
def test_influences_of_every_kind_of_loss(name, kind):
    outputs, loss, reduced, targets = LOSSES[name]
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).double().eval()
    x, y = real(5), targets()
    close(computed(module, loss, x, y, kind), expected(kind, module, reduced, x, y))


class Tagger(nn.Module):
    """A class for each position of a sequence: outputs (batch, classes, positions)."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.GRU(3, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.outer(self.inner(x)[0]).transpose(1, 2)


@pytest.mark.parametrize("kind", ["up", "perturbation"])
def test_a_label_at_each_position(kind):
    module, x = Tagger().double().eval(), real(4, 3)
    y = torch.randint(0, CLASSES, (ROWS, 4))
    actual = computed(module, "cross_entropy", x, y, kind)
    close(actual, expected(kind, module, F.cross_entropy, x, y))


# In the output of a module: embeddings --------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_perturbation_of_embedded_tokens(tied):
    module = Tokens(tied=tied).double().eval()
    x, y = torch.randint(0, 7, (ROWS, 4)), torch.randint(0, CLASSES, (ROWS,))
    actual = computed(module, "cross_entropy", x, y, "perturbation", wrt="embed")
    moved = x, torch.zeros(ROWS, 4, 4).double()
    assert actual.shape == (2, 7, 4, 4)
    close(actual, expected("perturbation", Shifted(module), F.cross_entropy, moved, y, of=1))


@pytest.mark.parametrize("name", ["mlp", "images", "transformer", "lstm"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_in_the_output_of_an_identity_it_is_the_one_in_the_inputs(name):
    inner, x, y = CASES[name].make()
    module = nn.Sequential(nn.Identity(), inner)
    actual = computed(module, "cross_entropy", x, y, "perturbation", wrt="0")
    close(actual, computed(module, "cross_entropy", x, y, "perturbation"))


def test_tokens_alone_are_refused_with_what_to_ask_for():
    module, x, y = CASES["tokens"].make()
    with pytest.raises(ModelError, match=r"torch\.int64 have no derivative.*wrt='embed'"):
        computed(module, "cross_entropy", x, y, "perturbation")


@pytest.mark.parametrize(
    ("name", "wrt", "message"),
    [
        ("tokens", "embedding", r"no module 'embedding'; it has 'embed', 'outer'"),
        ("linear", "0", r"no module '0'; it has none inside"),
        ("reused", "inner", r"'inner' is called 2 times"),
        ("recurrent", "inner", r"'inner' returns a tuple, wanted one tensor"),
    ],
)
def test_modules_without_one_output_a_row_are_refused(name, wrt, message):
    module, x, y = CASES[name].make()
    with pytest.raises(ModelError, match=message):
        computed(module, "cross_entropy", x, y, "perturbation", wrt=wrt)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.total, self.outer = nn.Flatten(0), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.outer(x + 0 * self.total(x).sum())


def test_an_output_without_an_axis_of_rows_is_refused():
    with pytest.raises(ModelError, match=r"shape \(10,\) for 2 rows.*row as leading axis"):
        computed(
            Summed().double(),
            "cross_entropy",
            real(5),
            torch.randint(0, CLASSES, (ROWS,)),
            "perturbation",
            wrt="total",
        )


def test_up_weighting_has_no_point():
    module, x, y = CASES["tokens"].make()
    with pytest.raises(ValueError, match="wrt='embed' is for influence_type='perturbation'"):
        computed(module, "cross_entropy", x, y, wrt="embed")


# What cannot work says why --------------------------------------------------------------------


class Noisy(nn.Module):
    """Adds noise to its hidden values in place."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        hidden = self.inner(x)
        hidden += torch.randn_like(hidden)
        return self.outer(torch.tanh(hidden))


class Overwriting(nn.Module):
    """Scales the inputs that it is given in place."""

    def __init__(self):
        super().__init__()
        self.outer = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.outer(x.mul_(0.5))


def _normalised():
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))


REFUSED = {  # module, shape of an input, what the error says
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.2), nn.Linear(4, CLASSES)),
        (5,),
        r"Dropout '1' drops at random \(p=0\.2, train mode\).*module\.eval\(\)",
    ),
    "dropout between recurrent layers": (
        lambda: nn.Sequential(nn.LSTM(3, 4, 2, dropout=0.3, batch_first=True)),
        (4, 3),
        r"LSTM '0' drops at random \(p=0\.3, train mode\)",
    ),
    "dropout of attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
        (4, 4),
        r"MultiheadAttention 'self_attn' drops at random \(p=0\.1, train mode\)",
    ),
    "batch norm": (
        _normalised,
        (1, 3, 3),
        r"BatchNorm2d '1' uses the statistics of the batch.*module\.eval\(\)",
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, CLASSES)
        ),
        (2, 3),
        r"InstanceNorm1d '0' uses the statistics of the batch.*module\.eval\(\)",
    ),
    "noise in place": (Noisy, (5,), r"differs between two calls.*random.*switch it off"),
    "inputs overwritten": (Overwriting, (5,), r"changes its inputs in place.*copy"),
}


@pytest.mark.parametrize("kind", ["up", "perturbation"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_says_why(name, kind):
    build, shape, message = REFUSED[name]
    module, x = build().double().train(), real(*shape)
    before = x.clone()
    with pytest.raises(ModelError, match=message):
        computed(module, "cross_entropy", x, torch.randint(0, CLASSES, (ROWS,)), kind)
    assert torch.equal(x, before)


# The order of rows, and how they are batched -------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_neither_the_order_of_rows_nor_their_batches_change_a_number(name):
    module, x, y = CASES[name].make()
    objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    gradients = per_sample_gradients(objective, rows, batch_size=4).dense()
    turned = per_sample_gradients(objective, rows[order], batch_size=7).dense()
    assert_close(turned, gradients[order], rtol=1e-9, atol=1e-12)
    H = Hessian(objective, rows, batch_size=4).dense()
    assert_close(Hessian(objective, rows[order], batch_size=7).dense(), H, rtol=1e-8, atol=1e-11)


class StepsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x.transpose(0, 1))).sum(0))


def test_an_axis_of_two_steps_is_none_of_rows():
    # Of the two rows that a module was looked at with, two steps passed for the rows.
    module, x, y = StepsFirst().double(), real(2, 3), torch.arange(ROWS) % CLASSES
    with pytest.raises(ModelError, match=r"shape \(2, 1, 4\) for 1 rows.*row as leading axis"):
        computed(module, "cross_entropy", x, y, "perturbation", wrt="inner")
