import weakref
from functools import cache, lru_cache, wraps
from types import MappingProxyType

import pytest
import torch
from networks import digits_mlp
from torch import nn
from torch.nn import functional as F

from influence_dag.curvature import Hessian
from influence_dag.errors import ModelError
from influence_dag.losses import per_sample_loss, reduced_loss
from influence_dag.objective import footprint, remembered
from influence_dag.objective.footprint import rows_in_cache, saved_numbers
from influence_dag.objective.objective import (
    Objective,
    Rows,
    flushed_denormals,
    without_denormal_entries,
)


@pytest.fixture
def rows():
    return Rows(torch.randn(7, 4), torch.randint(0, 3, (7,)))


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


# Rows -----------------------------------------------------------------------------------------


def test_a_loader_gives_all_its_rows_ragged_last_batch_included(rows):
    gathered = Rows.from_loader([(batch.x, batch.y) for batch in rows.batches(3)])
    assert torch.equal(gathered.x, rows.x)
    assert torch.equal(gathered.y, rows.y)


def test_a_loader_of_named_inputs_gives_named_inputs():
    batches = [({"a": torch.ones(2, 3), "b": torch.ones(2)}, torch.ones(2))] * 2
    gathered = Rows.from_loader(batches)
    assert len(gathered) == 4
    assert gathered.x["a"].shape == (4, 3)


def test_an_empty_loader_is_refused():
    with pytest.raises(ModelError, match="empty"):
        Rows.from_loader([])


def test_batches_cover_the_rows_in_order(rows):
    sizes = [len(batch) for batch in rows.batches(3)]
    assert sizes == [3, 3, 1]
    assert torch.equal(torch.cat([batch.x for batch in rows.batches(3)]), rows.x)


def test_another_dtype_leaves_labels_and_tokens_alone():
    rows = Rows((torch.zeros(2, 3), torch.ones(2, 5, dtype=torch.long)), torch.tensor([1, 0]))
    moved = rows.to(dtype=torch.float64)
    assert [leaf.dtype for leaf in (*moved.x, moved.y)] == [
        torch.float64,
        torch.int64,
        torch.int64,
    ]


def test_inputs_and_targets_of_different_lengths_are_refused():
    with pytest.raises(ModelError, match=r"\[3, 4\]"):
        Rows(torch.zeros(3, 2), torch.zeros(4))


# Losses ---------------------------------------------------------------------------------------

LOSSES = {
    "cross_entropy": (F.cross_entropy, torch.randn(6, 3), torch.randint(0, 3, (6,))),
    "mse": (F.mse_loss, torch.randn(6, 2), torch.randn(6, 2)),
    "bce_with_logits": (
        F.binary_cross_entropy_with_logits,
        torch.randn(6, 2),
        torch.rand(6, 2),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_torchs_on_batches_of_one(name):
    reference, output, target = LOSSES[name]
    each = [reference(output[i : i + 1], target[i : i + 1]) for i in range(len(output))]
    torch.testing.assert_close(per_sample_loss(name)(output, target), torch.stack(each))
    torch.testing.assert_close(reduced_loss(reference)(output, target), torch.stack(each))


def test_a_reduced_sum_and_an_unreduced_loss_become_the_same():
    output, target = torch.randn(5, 3), torch.randint(0, 3, (5,))
    expected = F.cross_entropy(output, target, reduction="none")
    for reduction in ("mean", "sum", "none"):
        loss = reduced_loss(nn.CrossEntropyLoss(reduction=reduction))
        torch.testing.assert_close(loss(output, target), expected)


def test_cross_entropy_averages_the_positions_of_a_sample():
    output, target = torch.randn(4, 3, 5), torch.randint(0, 3, (4, 5))
    each = [F.cross_entropy(output[i : i + 1], target[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(per_sample_loss("cross_entropy")(output, target), torch.stack(each))


def test_a_column_of_outputs_meets_a_vector_of_targets_row_by_row():
    output, target = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])
    assert per_sample_loss("mse")(output, target).tolist() == [1.0, 4.0]


def test_a_target_of_another_size_is_refused():
    with pytest.raises(ModelError, match="2 numbers a sample"):
        per_sample_loss("mse")(torch.zeros(4, 2), torch.zeros(4))


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match=r"crossentropy.*cross_entropy, mse, bce_with_logits"):
        per_sample_loss("crossentropy")


def test_a_loss_that_leaves_several_numbers_a_sample_is_refused():
    loss = reduced_loss(nn.MSELoss(reduction="none"))
    with pytest.raises(ModelError, match=r"\(1, 2\)"):
        loss(torch.zeros(3, 2), torch.zeros(3, 2))


# Objective ------------------------------------------------------------------------------------


def test_theta_is_the_trainable_parameters_row_major_in_order():
    module = network()
    module[0].bias.requires_grad_(False)
    objective = Objective(module, "cross_entropy")
    pieces = [module[0].weight, module[2].weight, module[2].bias]
    assert objective.parameter_names == ("0.weight", "2.weight", "2.bias")
    assert torch.equal(objective.params, torch.cat([piece.flatten() for piece in pieces]))
    assert objective.size == 20 + 15 + 3
    assert torch.equal(objective.unflatten(objective.params)["2.weight"], module[2].weight)


def test_a_tied_weight_is_one_entry(rows):
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    objective = Objective(module, "cross_entropy")
    assert objective.parameter_names == ("0.weight", "0.bias", "2.bias")
    doubled = objective.params.clone()
    doubled[objective.slices["0.weight"]] *= 2
    expected = F.linear(
        torch.tanh(F.linear(rows.x, 2 * module[0].weight, module[0].bias)),
        2 * module[0].weight,
        module[2].bias,
    )
    torch.testing.assert_close(objective.outputs(doubled, rows.x), expected)


def test_losses_follow_theta_and_leave_the_module_alone(rows):
    module = network()
    objective = Objective(module, "cross_entropy")
    before = objective.mean_loss(objective.params, rows)
    torch.testing.assert_close(before, F.cross_entropy(module(rows.x), rows.y))
    assert not torch.allclose(objective.mean_loss(2 * objective.params, rows), before)
    torch.testing.assert_close(F.cross_entropy(module(rows.x), rows.y), before)


def test_params_do_not_move_when_the_module_is_trained(rows):
    module = network()
    objective = Objective(module, "cross_entropy")
    before = objective.params.clone()
    with torch.no_grad():
        module[0].weight.add_(1.0)
    assert torch.equal(objective.params, before)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.linear(left - right)


@pytest.mark.parametrize("kind", [tuple, dict])
def test_several_inputs_go_by_position_or_by_name(kind):
    module, left, right = Pair(), torch.randn(5, 4), torch.randn(5, 4)
    x = (left, right) if kind is tuple else {"right": right, "left": left}
    objective = Objective(module, "cross_entropy")
    torch.testing.assert_close(objective.outputs(objective.params, x), module(left, right))
    objective.check(Rows(x, torch.zeros(5, dtype=torch.long)))


def test_a_measurement_takes_the_place_of_the_loss_where_asked(rows):
    objective = Objective(network(), "cross_entropy", measurement=lambda f, y: f[:, 0])
    outputs = objective.outputs(objective.params, rows.x)
    torch.testing.assert_close(objective.measurements(objective.params, rows), outputs[:, 0])
    plain = Objective(network(), "cross_entropy")
    losses = plain.losses(plain.params, rows)
    torch.testing.assert_close(plain.measurements(plain.params, rows), losses)


class Padded(nn.Module):
    """A mean over all positions, padded ones too."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x, padding):
        return self.encoder(x, src_key_padding_mask=padding).mean(1)


def test_losses_with_attention_are_the_same_whether_or_not_gradients_are_asked_for():
    padding = torch.tensor([[False, False, True], [False, True, True]])
    rows = Rows((torch.randn(2, 3, 4), padding), torch.tensor([0, 3]))
    objective = Objective(Padded().eval(), "cross_entropy")
    enabled = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        without = objective.losses(objective.params, rows)
    theta = objective.params.clone().requires_grad_()
    torch.testing.assert_close(without, objective.losses(theta, rows).detach())
    assert torch.backends.mha.get_fastpath_enabled() is enabled


def test_denormal_weights_are_zero_in_theta():
    objective = Objective(digits_mlp(), "cross_entropy")
    tiny = torch.finfo(torch.float32).tiny
    magnitudes = torch.cat([p.detach().abs().flatten() for p in objective.module.parameters()])
    denormal = (magnitudes > 0) & (magnitudes < tiny)
    assert denormal.sum() > 0
    assert (objective.params[denormal] == 0).all()
    assert (objective.params[~denormal].abs() == magnitudes[~denormal]).all()


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_inside_and_as_before_outside(before):
    def halved():
        return float(torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64) / 2)

    torch.set_flush_denormal(before)
    try:
        with flushed_denormals():
            assert halved() == 0
        assert (halved() == 0) is before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormal_entries_become_zero_and_no_others(dtype):
    tiny = torch.finfo(dtype).tiny
    kept = torch.tensor([1.0, -2 * tiny, 2 * tiny, torch.inf, torch.nan, 0.0], dtype=dtype)
    lost = torch.tensor([tiny / 2, -tiny / 8], dtype=dtype)
    assert (lost != 0).all()
    values = torch.cat([kept, lost])
    found = without_denormal_entries(values)
    assert found is values
    torch.testing.assert_close(found[:6], kept, rtol=0, atol=0, equal_nan=True)
    assert (found[6:] == 0).all()


# What cannot be used --------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.dropout(self.linear(x), 0.5, training=True)


class RootOfNothing(nn.Module):
    """0 for every row, with an infinite slope."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return (0 * self.inner(x)).abs().sqrt()


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x).squeeze()


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x - x.mean(0))


def _with(layer):
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3))


def _lost_in_batches_of_four(output, target):
    lost = float("nan") if len(output) == 4 else 0.0  # a constant, which no gradient has
    return F.cross_entropy(output, target, reduction="none") + lost


UNUSABLE = {
    "dropout": (_with(nn.Dropout(0.3)), "cross_entropy", r"Dropout '1'.*p=0\.3.*eval\(\)"),
    "batch norm in train mode": (
        _with(nn.BatchNorm1d(4)),
        "cross_entropy",
        r"BatchNorm1d '1'.*statistics of the batch.*eval\(\)",
    ),
    "batch norm without statistics": (
        _with(nn.BatchNorm1d(4, track_running_stats=False)).eval(),
        "cross_entropy",
        r"track_running_stats=True",
    ),
    "mean loss": (network(), F.cross_entropy, r"returns shape \(\) for 4 rows.*shape \(4,\)"),
    "loss that fails": (network(), lambda f, y: f @ y, r"fails on the first 4 rows: RuntimeError"),
    "noise": (Noisy(), "cross_entropy", "differs between two calls.*random"),
    "a root of nothing": (
        RootOfNothing(),
        "cross_entropy",
        "gradients of the rows' losses are not finite, though the losses are",
    ),
    "an axis that one row loses": (
        Squeezed(),
        lambda f, y: F.cross_entropy(f.reshape(-1, 3), y, reduction="none"),
        r"returns \(3,\) for one row and \(2, 3\) for two: .*squeeze\(-1\)",
    ),
    "rows that mix": (Centred(), "cross_entropy", "depends on the other rows"),
    "no number in some batches": (network(), _lost_in_batches_of_four, "loss of a row depends on"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_refused_with_its_cause(case, rows):
    module, loss, message = UNUSABLE[case]
    with pytest.raises(ModelError, match=message):
        Objective(module, loss).check(rows)


def test_the_measurement_is_checked_too(rows):
    objective = Objective(network(), "cross_entropy", measurement=lambda f, y: f)
    with pytest.raises(ModelError, match=r"measurement returns shape \(4, 3\)"):
        objective.check(rows)


class Holding(nn.Module):
    """A weight that is used as the module's own and from elsewhere."""

    def __init__(self, how):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        weight = self.linear.weight
        self.held = {
            "list": lambda h, held=(weight,): h @ held[0],
            "doubled once": lambda h, doubled=2 * weight: h @ doubled,
        }[how]

    def forward(self, x):
        return self.held(torch.tanh(self.linear(x)))


@pytest.mark.parametrize("how", ["list", "doubled once"])
def test_a_weight_that_is_held_elsewhere_is_refused_by_name(how, rows):
    """Its value would stay as it is when θ is exchanged: half of the derivative would be missing"""
    with pytest.raises(ModelError, match=r"the loss reaches linear\.weight past the module"):
        Objective(Holding(how), "cross_entropy").check(rows)


@pytest.mark.parametrize("what", ["loss", "measurement"])
def test_a_sum_over_the_modules_parameters_is_refused(what, rows):
    module = network()

    def penalised(f, y):
        squares = sum(each.square().sum() for each in module.parameters())
        return F.cross_entropy(f, y, reduction="none") + 0.1 * squares

    loss = penalised if what == "loss" else "cross_entropy"
    measurement = penalised if what == "measurement" else None
    objective = Objective(module, loss, measurement=measurement)
    with pytest.raises(ModelError, match=rf"the {what} reaches .*\(w/2\)‖θ‖² in a fit is λ = w"):
        objective.check(rows)


def test_parameters_of_another_module_in_the_loss_are_constants(rows):
    anchor = nn.Linear(3, 1)

    def pulled(f, y):
        return F.cross_entropy(f, y, reduction="none") + (f @ anchor.weight[0]).square()

    Objective(network(), pulled).check(rows)


class Keeping(nn.Module):
    """What a call leaves behind: a mean or a weight that later ones use, or what nobody reads."""

    def __init__(self, what):
        super().__init__()
        self.linear, self.what, self.kept, self.calls = nn.Linear(4, 4), what, None, 0
        self.cache, self.means = {"used": self.linear.weight}, []
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        if self.what == "first mean" and not self.mean.any():
            self.mean.copy_(x.detach().mean(0))
        if self.what == "first weight" and self.kept is None:
            self.kept = self.linear.weight.detach().mT
        if self.what == "first weight":
            return torch.tanh(self.linear(x)) @ self.kept
        if self.what == "last output":
            self.kept = self.linear(x)
        if self.what == "weight's length":
            scale = self.cache.setdefault("length", self.linear.weight.detach().norm())
            return self.linear(x) * scale
        if self.what == "mean in a list":
            self.means += [] if self.means else [x.mean(0)]
            return self.linear(x - self.means[0])
        if self.what == "shapes":
            self.cache.setdefault(tuple(x.shape), torch.ones(4))
        if self.what == "ones" and self.kept is None:
            self.kept = torch.ones(4)
            x = x * self.kept
        return self.linear(x - self.mean)


def test_a_fault_of_a_check_does_not_turn_it_off(monkeypatch, rows):
    monkeypatch.setattr(remembered, "_are_same", lambda now: True)
    with pytest.raises(TypeError, match="positional argument"):
        Objective(Keeping("first mean"), "cross_entropy").check(rows)


class FewAtOnce(nn.Module):
    """It takes the rows that it is given first, at the θ that it has, and no others."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.seen = nn.Linear(4, 3), 0, self.state_dict()

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise KeyError("another call")
        return self.linear(x)


def test_a_model_that_raises_where_it_is_looked_at_is_told_by_what_asks_it_in_earnest(rows):
    Objective(FewAtOnce(), "cross_entropy").check(rows)


OTHER_TENSORS = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse by rows": lambda: torch.eye(4).to_sparse_csr(),
    "of eight bits": lambda: torch.eye(4).to(torch.float8_e4m3fn),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "of no memory": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", OTHER_TENSORS.values(), ids=OTHER_TENSORS)
def test_a_module_may_have_tensors_of_any_kind(make, rows):
    module = network()
    module.beside = make()
    Objective(module, "cross_entropy").check(rows)


REMEMBERED = {
    "first mean": "mean",
    "first weight": "kept",
    "weight's length": "cache",
    "mean in a list": "means",
}


@pytest.mark.parametrize(("what", "where"), REMEMBERED.items())
def test_a_module_that_remembers_its_first_call_is_refused_by_what_it_keeps(what, where, rows):
    with pytest.raises(ModelError, match=rf"remembers a call \(.*{where}.*\)"):
        Objective(module := Keeping(what), "cross_entropy").check(rows)
    assert module.cache["used"] is module.linear.weight


KEPT = {}


def centred(x):
    return x - KEPT.setdefault("mean", x.detach().mean(0))


def once(function):
    made = []

    @wraps(function)
    def wrapper(x):
        made.extend([] if made else [function(x)])
        return made[0]

    return wrapper


@once
def remembering(x):
    return x.detach().mean(0)


@cache
def length_of(module):
    return module.linear.weight.detach().norm()


@cache
def two(places):
    return torch.full((places,), 2.0)


class Doubling(nn.Linear):
    def forward(self, x):
        return two(x.shape[1]) * super().forward(x)


class Holder:
    mean = None


class Elsewhere(nn.Module):
    """What a call leaves behind beside the module's own attributes."""

    mean = None

    def __init__(self, where):
        super().__init__()
        self.linear, self.where, self.holder, means = nn.Linear(4, 4), where, Holder(), []
        self.around = lambda x: x - (means or means.append(x.detach().mean(0)) or means)[0]
        if where == "hook":
            self.linear.register_forward_pre_hook(self._hook)
        if where == "hook's closure":
            around = self.around
            self.linear.register_forward_pre_hook(lambda _, inputs: around(*inputs))

    def _hook(self, layer, inputs):
        layer.mean = getattr(layer, "mean", inputs[0].detach().mean(0))
        return inputs[0] - layer.mean

    @lru_cache  # noqa: B019
    def length(self):
        return self.linear.weight.detach().norm()

    @property
    def size(self):
        return KEPT.setdefault("size", self.linear.weight.detach().norm())

    def forward(self, x, given={}):  # noqa: B006
        mean = x.detach().mean(0)
        if self.where == "global":
            x = centred(x)
        elif self.where == "closure":
            x = self.around(x)
        elif self.where == "class":
            Elsewhere.mean = mean if Elsewhere.mean is None else Elsewhere.mean
            x = x - Elsewhere.mean
        elif self.where == "default":
            x = x - given.setdefault("mean", mean)
        elif self.where == "function":
            Elsewhere.forward.mean = getattr(Elsewhere.forward, "mean", mean)
            x = x - Elsewhere.forward.mean
        elif self.where == "cache":
            x = x * self.length()
        elif self.where == "cached function":
            x = x * length_of(self)
        elif self.where == "decorated":
            x = x - remembering(x)
        elif self.where == "property":
            x = x * self.size
        elif self.where == "object":
            self.holder.mean = mean if self.holder.mean is None else self.holder.mean
            x = x - self.holder.mean
        return self.linear(x)


@pytest.mark.parametrize(
    ("where", "said"),
    {
        "global": r"test_objective\.KEPT",
        "closure": r"means of Elsewhere\.__init__",
        "class": r"Elsewhere\.mean",
        "default": r"Elsewhere\.forward\.__defaults__",
        "function": r"Elsewhere\.forward\.mean",
        "object": r"holder\.mean",
        "cache": r"Elsewhere\.length",
        "cached function": r"test_objective\.length_of",
        "decorated": r"made of remembering",
        "property": r"test_objective\.KEPT",
        "hook": r"linear\.mean",
        "hook's closure": r"means of Elsewhere\.__init__",
    }.items(),
)
def test_a_module_that_remembers_elsewhere_is_refused_by_where(where, said, rows):
    with pytest.raises(ModelError, match=rf"Elsewhere remembers a call \(.*{said}"):
        Objective(Elsewhere(where), "cross_entropy").check(rows)
    KEPT.clear()
    length_of.cache_clear()
    Elsewhere.mean = None
    vars(Elsewhere.forward).clear()
    Elsewhere.forward.__defaults__[0].clear()


def test_a_cache_of_what_depends_on_no_call_is_none_of_one(rows):
    Objective(Doubling(4, 4), "cross_entropy").check(rows)
    assert two.cache_info().currsize == 1


def test_what_others_look_at_may_be_noted_elsewhere(rows):
    seen = []
    module = network()
    module[0].register_forward_hook(lambda *of: seen.append(of[2].detach()))
    Objective(module, "cross_entropy").check(rows)
    assert seen, "and what was noted is not taken away"


def test_it_is_refused_beside_a_function_of_no_module(rows):
    module, scope = Keeping("first mean"), {}
    exec("def twice(x):\n    return 2 * x", scope)
    assert scope["twice"].__module__ is None
    module.twice = scope["twice"]
    with pytest.raises(ModelError, match=r"remembers a call \(mean"):
        Objective(module, "cross_entropy").check(rows)


def test_it_is_refused_beside_an_attribute_that_is_not_to_be_copied(rows):
    """Of none of its attributes it was asked whether a call had left it as it was."""
    module = Keeping("first mean")
    module.settings = [MappingProxyType({"width": 4})]
    with pytest.raises(ModelError, match=r"remembers a call \(mean"):
        Objective(module, "cross_entropy").check(rows)


@pytest.mark.parametrize("what", ["nothing", "last output", "ones", "shapes"])
def test_a_module_may_keep_what_changes_no_output(what, rows):
    Objective(module := Keeping(what), "cross_entropy").check(rows)
    assert module.cache["used"] is module.linear.weight


def test_a_module_that_was_called_before_is_taken_as_it_is(rows):
    module = Keeping("first mean")
    with torch.no_grad():
        module(rows.x)
    Objective(module, "cross_entropy").check(rows)


def test_cross_entropy_of_one_output_is_refused(rows):
    """Its losses and all influences were 0."""
    alone = Rows(rows.x, torch.zeros_like(rows.y))
    with pytest.raises(ModelError, match="the model has 1 output, of which cross-entropy is 0"):
        Objective(nn.Linear(4, 1), "cross_entropy").check(alone)


def test_a_label_out_of_range_is_named_with_its_row(rows):
    rows.y[5] = 3
    with pytest.raises(ModelError, match=r"row 5 has label 3.*3 outputs \(labels 0 to 2\)"):
        Objective(network(), "cross_entropy").check(rows)


def test_a_probability_out_of_range_is_named_with_its_row():
    rows = Rows(torch.randn(6, 4), torch.tensor([0.0, 1.0, 1.0, 0.5, 2.0, 0.0]))
    with pytest.raises(ModelError, match=r"row 4 has label 2\.0"):
        Objective(nn.Linear(4, 1), "bce_with_logits").check(rows)


def test_a_loss_that_is_not_finite_is_named_with_its_row(rows):
    rows.x[6, 2] = torch.nan
    with pytest.raises(ModelError, match=r"row 6 is nan \(1 of 7"):
        Objective(network(), "cross_entropy").check(rows)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ModelError, match="no trainable parameter"):
        Objective(network().requires_grad_(False), "cross_entropy")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_model_without_random_layers_passes_in_any_mode(mode, rows):
    Objective(getattr(network(), mode)(), "cross_entropy").check(rows)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_a_model_may_return_one_number_a_row(loss):
    outputs, targets = torch.randn(4), torch.rand(4)
    of_columns = per_sample_loss(loss)(outputs[:, None], targets[:, None])
    torch.testing.assert_close(per_sample_loss(loss)(outputs, targets), of_columns)


def test_what_a_pass_keeps_is_counted_and_let_go_of():
    """A graph that holds its own results through hooks is never freed: 2 θ a batch."""
    seen = []

    def loss(output, target):
        squashed = output.tanh()
        seen.append(weakref.ref(squashed))
        return squashed.sum(1)

    objective = Objective(nn.Linear(3, 2).double(), loss)
    rows = Rows(torch.randn(4, 3).double(), torch.zeros(4))
    assert sum(saved_numbers(objective, rows)) >= 2 + 3
    assert len(seen) == 2
    assert [each() for each in seen] == [None, None]


def test_what_a_pass_keeps_is_counted_of_a_single_row_too():
    rows = Rows(torch.randn(40, 3).double(), torch.zeros(40, 2**15).double())
    objective = Objective(nn.Linear(3, 2**15).double(), "mse")
    assert rows_in_cache(objective, rows[:1], 40) == 32
    assert rows_in_cache(objective, rows, 40) == 32


def test_a_module_may_change_its_parameters_in_place_and_leaves_theta_as_it_is():
    module = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 2))
    x = torch.tensor([[0, 1], [2, 3]])
    objective, y = Objective(module, "cross_entropy"), torch.tensor([0, 1])
    theta = objective.params.clone().requires_grad_()
    values = objective.losses(theta, Rows(x, y))
    found = torch.autograd.grad(values.sum(), theta)[0]
    assert torch.equal(theta, objective.params)
    with torch.no_grad():
        module[0].weight.copy_(module[0].weight.renorm(2, 0, 0.5))  # those that x asks for
    cut = Objective(module, "cross_entropy")
    wanted = torch.func.grad(lambda theta: cut.losses(theta, Rows(x, y)).sum())(cut.params)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_network_is_measured_once_for_all_products(monkeypatch):
    seen, measure = [], footprint.saved_numbers
    monkeypatch.setattr(
        footprint, "saved_numbers", lambda *of, **how: seen.append(of) or measure(*of, **how)
    )
    objective = Objective(nn.Linear(4, 3), "cross_entropy")
    rows = Rows(torch.randn(9, 4), torch.arange(9) % 3)
    hessian = Hessian(objective, rows, route="autograd")
    for _ in range(3):
        hessian.apply(objective.params[None])
    assert len(seen) == 1


def test_in_float64_all_else_is_as_it_was():
    def measurement(output, target):
        return output[:, 0]

    one = Objective(nn.Linear(2, 3), "cross_entropy", measurement=measurement, output="scores")
    other = one.in_float64()
    assert other.dtype == torch.float64
    torch.testing.assert_close(other.params, one.params.double(), rtol=0, atol=0)
    kept = ("loss", "measurement", "output")
    assert [getattr(other, name) for name in kept] == [getattr(one, name) for name in kept]
