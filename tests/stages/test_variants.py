"""Studies of other shapes: dampings in a row, several inputs, float32, other sources of a model."""

import numpy as np
import pytest
import reference
import torch
from reduced_forms import BY, FORMS, kept, longest
from safetensors.torch import load_file, save_file
from tiny_answers import DAMPING, assert_close, computed, expected, stored_module
from tiny_project import MODEL, Project
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import StoreError, StudyError
from influence_dag.explorer.content import Contents
from influence_dag.explorer.opened import Opened
from influence_dag.explorer.pair import Maps
from influence_dag.influence import perturbation as derivatives
from influence_dag.stages.foreseen import foresee
from influence_dag.stages.solving import SolvesOfRows

DIRECT_ONLY = {"cg": None}


def test_a_list_of_dampings_gives_each_its_own_influences(project):
    sweep = [0.05, 0.5, 5.0]
    project.write_settings(damping=sweep)
    updates = project.refresh()
    assert not computed(updates) & {"model", "gradients", "hessian"}
    for method in ("direct", "cg"):
        influences = project.results[method].influences
        assert influences.dims == ("damping", "test", "train")
        for value in sweep:
            wanted = expected(project, "influences", value)
            assert_close(influences.sel(damping=value), wanted)
    perturbation = project.results.perturbation("direct").sel(damping=0.5)
    assert_close(perturbation, expected(project, "perturbation_influences", 0.5))
    assert project.results.open("direct/summary").train_sum.dims == ("damping", "train")
    assert computed(project.refresh()) == set()
    bench, slots = project.bench(), np.array([2, 5])
    solver = SolvesOfRows("cg", ("influence_factors",)).at(bench)
    stored = bench.require("cg/influence_factors").read("influence_factors")
    for place in range(len(sweep)):  # where the next solves of these rows would start
        start = solver._previous(slots, place, stored.shape[-1])
        np.testing.assert_array_equal(start.cpu(), stored[place, slots])


def test_one_more_damping_leaves_the_others_as_they_are(project):
    project.write_settings(damping=[0.05, 0.5])
    project.refresh()
    project.write_settings(damping=[0.05, 0.5, 5.0])
    updates = project.refresh()
    for name in ("direct/influences", "direct/perturbation_influences"):
        assert (updates[name].blocks_computed, updates[name].blocks_reused) == (15, 30)
    assert not updates["direct/curvature"].blocks_computed


def test_a_sweep_of_removed_rows(project):
    project.write_settings(damping=[0.05, 0.5], methods=DIRECT_ONLY)
    project.refresh()
    project.write("train", project.rows["train"][1:])
    project.write("test", project.rows["test"][:-1])
    project.refresh()
    influences = project.results["direct"].influences
    assert influences.sizes == {"damping": 2, "test": 9, "train": 39}
    for value in (0.05, 0.5):
        assert_close(influences.sel(damping=value), expected(project, "influences", value))


def test_more_rows_than_a_chunk_of_inputs_holds(tmp_path):
    width, rows = 1024, {"train": 300, "test": 5}  # 8 KiB a row: a chunk holds 128
    model = MODEL.replace("nn.Linear(3, 4)", f"nn.Linear({width}, 1)").replace("4, 3", "1, 3")
    project = Project(tmp_path, model=model, methods={"direct": None, "cg": None, "identity": {}})
    rng = np.random.default_rng(0)
    for split, n in rows.items():
        x, y = rng.normal(size=(n, width)), np.arange(n) % 3
        np.savez(tmp_path / f"{split}.npz", x=x, y=y)
    project.settings["data"] = {split: f"{split}.npz" for split in rows}
    project.write_settings(store={"chunks": None}, perturbation=None)
    project.refresh()
    stored = project.results.open("dataset")
    current = project.results.store.version("dataset")
    assert [current.variables[name].chunks[0] for name in ("train_x", "train_y")] == [128, 128]
    assert stored.train_x.values.tolist() == np.load(tmp_path / "train.npz")["x"].tolist()
    project.results["identity"].influences.load()


def test_single_precision_agrees_to_its_precision(tmp_path):
    project = Project(tmp_path, compute={"dtype": "float32"}, methods={"cg": {"rtol": 1e-6}})
    project.refresh()
    influences = project.results["direct"].influences
    assert influences.dtype == np.float32
    assert_close(influences, expected(project, "influences"), 5e-6)
    assert_close(project.results["cg"].influences, expected(project, "influences"), 1e-4)
    stored = project.results.perturbation("direct")
    assert_close(stored, expected(project, "perturbation_influences"), 5e-6)


TWO_INPUTS = """\
import numpy as np
import torch
from torch import nn


class Pairs(torch.utils.data.Dataset):
    def __init__(self, seed, n):
        rng = np.random.default_rng(seed)
        self.left, self.right = rng.normal(size=(n, 2)), rng.normal(size=(n, 3, 2))
        self.y = rng.normal(size=(n, 1))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return {"left": self.left[row], "right": self.right[row]}, self.y[row]


def train():
    return Pairs(0, 20)


def test():
    return Pairs(1, 6)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, left, right):
        return (torch.einsum("bi,bij->bj", self.layer(left), right)).tanh().sum(-1, keepdim=True)


def build():
    return Bilinear()
"""


def test_a_model_of_several_inputs(tmp_path, monkeypatch):
    data = {"train": "tiny_model:train", "test": "tiny_model:test", "id": None, "target": None}
    model = {"loss": "mse"}
    project = Project(tmp_path, model=TWO_INPUTS, data=data, methods=DIRECT_ONLY)
    project.write_settings(model=model)
    project.refresh()
    stored = project.results.open("direct/perturbation_influences")
    assert "6 test rows, 2 left, 3 × 2 right; " in str(foresee(project.folder))
    left, right = stored.perturbation_influences_left, stored.perturbation_influences_right
    assert left.dims == ("test", "train", "left_0")
    assert right.dims == ("test", "train", "right_0", "right_1")
    wanted = _two_inputs_by_autograd(project)
    assert_close(project.results["direct"].influences, wanted["influences"])
    assert_close(left, wanted["left"])
    assert_close(right, wanted["right"])
    assert computed(project.refresh()) == set()
    _slices_of_two_inputs(project, monkeypatch)
    _less_of_two_inputs(project, wanted)


def _slices_of_two_inputs(project, monkeypatch):
    """What is lazy differentiates the block that a slice is in, of the input that is asked for."""
    results, whole = project.results, derivatives.perturbation_influences
    sizes = []

    def counted(objective, s, rows, **options):
        sizes.append((len(s), len(rows)))
        return whole(objective, s, rows, **options)

    monkeypatch.setattr(derivatives, "perturbation_influences", counted)
    with pytest.raises(StoreError, match="inputs left, right; name one: input='left'"):
        results.lazy_perturbation("direct")
    for name in ("left", "right"):
        lazy = results.lazy_perturbation("direct", input=name)
        stored = results.perturbation("direct", input=name)
        assert lazy.dims == stored.dims
        one = lazy.isel(test=5, train=[8, 9])
        assert not sizes
        np.testing.assert_allclose(one, stored.isel(test=5, train=[8, 9]), rtol=1e-12)
        assert [sizes.pop()] == [(2, 8)]  # rows of one block
        assert not sizes
    with pytest.raises(StoreError, match="name one: input='left'"):
        results.plot.feature_map("test-02", "train-03")
    figure = results.plot.feature_map(*(lazy[d].values[2] for d in ("test", "train")), input="left")
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(bars, results.perturbation("direct", input="left")[2, 2], rtol=1e-6)
    np.testing.assert_allclose(lazy, stored, rtol=1e-12)
    assert len(sizes) == lazy.data.npartitions
    view = (opened := Opened(results)).view(None, None, None)
    maps, pair = Maps(Contents(opened)), (view.test.ids[2], view.train.ids[3])
    maps.compute(view, *pair)
    found, _ = maps.of(view, *pair)
    np.testing.assert_allclose(found["right"], stored.isel(test=2, train=3), rtol=1e-12)
    assert found["left"].shape == (2,)


def _less_of_two_inputs(project, wanted):
    """Each input is reduced by itself; pairs are ranked by all that is in them."""
    whole = {name: wanted[name] for name in ("left", "right")}
    for form in FORMS:
        kept(project, **form)
        found = {name: project.results.perturbation("direct", input=name) for name in whole}
        both = np.concatenate([each.reshape(*each.shape[:2], -1) for each in whole.values()], 2)
        order = longest(both)
        for name, each in found.items():
            if "pairs" in form:
                rest = (1,) * (whole[name].ndim - 2)
                expected = np.take_along_axis(whole[name], order.reshape(*order.shape, *rest), 1)
                assert (each.train.values == order).all()
            elif form["reduce"]["over"] == "test":
                expected = BY[form["reduce"]["by"]](whole[name], 0)
            else:
                expected = BY[form["reduce"]["by"]](whole[name].reshape(*both.shape[:2], -1), 2)
            assert_close(each, expected)


def _two_inputs_by_autograd(project) -> dict[str, np.ndarray]:
    """Dense answers for the model above, written out for it alone."""
    import tiny_model

    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model.build().double()

        def forward(self, x):
            return self.inner(x[:, :2], x[:, 2:].unflatten(1, (3, 2)))

    module = Positional()
    module.inner.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    flat = [
        (torch.tensor(np.c_[d.left, d.right.reshape(len(d), -1)]), torch.tensor(d.y))
        for d in (tiny_model.train(), tiny_model.test())
    ]
    damping = DAMPING
    mixed = reference.perturbation_influences(module, F.mse_loss, *flat, damping).numpy()
    return {
        "influences": reference.influences(module, F.mse_loss, *flat, damping).numpy(),
        "left": mixed[..., :2],
        "right": mixed[..., 2:].reshape(*mixed.shape[:2], 3, 2),
    }


# Where the model comes from


def test_a_checkpoint_is_used_as_it_is(project):
    module = stored_module(project)
    save_file(module.state_dict(), project.root / "mine.safetensors")
    before = project.results["direct"].influences.values
    project.write_settings(damping=DAMPING, model={"fit": None, "checkpoint": "mine.safetensors"})
    project.refresh()
    assert_close(project.results["direct"].influences, before)
    project.edit("train", 3, depth=0.1)
    assert "model" not in computed(project.refresh()), "θ does not depend on the rows"


TRAINED = f"""{MODEL}

def zero(module, rows):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))


def margin(output, target):
    chosen = output.gather(1, target[:, None]).squeeze(1)
    return output.logsumexp(1) - 2 * chosen


def squared(output, target):
    return (output - torch.nn.functional.one_hot(target, 3)).square().sum(1)
"""


def test_a_callable_may_train_the_model(tmp_path):
    project = Project(tmp_path, model=TRAINED, methods=DIRECT_ONLY, damping=1.0)
    project.write_settings(model={"fit": "tiny_model:zero"})
    project.refresh()
    first = stored_module(project)[0].bias
    assert_close(first.detach(), np.linspace(-1, 1, 4), 1e-6)
    assert_close(project.results["direct"].influences, expected(project, "influences", 1.0))


def test_a_loss_and_a_measurement_of_ones_own(tmp_path):
    project = Project(tmp_path, model=TRAINED, methods=DIRECT_ONLY)
    project.write_settings(model={"loss": "tiny_model:squared", "measurement": "tiny_model:margin"})
    project.refresh()
    import tiny_model

    def of_batch(loss):
        return lambda output, target: loss(output, target).mean()

    module, train, test = stored_module(project), project.tensors("train"), project.tensors("test")
    loss, margin = of_batch(tiny_model.squared), of_batch(tiny_model.margin)
    H = reference.hessian(module, loss, *train)
    factors = reference.damped_solve(
        H, reference.per_sample_gradients(module, margin, *test), DAMPING
    )
    gradients = reference.per_sample_gradients(module, loss, *train)
    assert_close(project.results["direct"].influences, (factors @ gradients.T).numpy())
    assert project.results["direct"].attrs["measurement"] == "tiny_model:margin"


def test_an_edited_model_is_fitted_again(project):
    """Also in the process that has imported it before."""
    project.refresh()
    (project.root / "tiny_model.py").write_text(MODEL.replace("nn.Tanh()", "nn.Softplus()"))
    assert "model" in computed(project.refresh())
    module = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)).double()
    module.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    wanted = reference.influences(
        module, F.cross_entropy, project.tensors("train"), project.tensors("test"), DAMPING
    )
    assert_close(project.results["direct"].influences, wanted.numpy())


# Perturbation


def test_a_tensor_above_the_budget_is_refused(project):
    before = project.data_versions()
    project.write_settings(perturbation={"max_bytes": "9.5kB"})
    with pytest.raises(StudyError) as caught:
        project.refresh()
    assert (
        "would take 9.375 KiB (10 × 40 × 3), the limit perturbation.max_bytes is 9.277 KiB"
        in str(caught.value)
    )
    assert project.data_versions() == before


def test_the_lazy_form_equals_the_stored_one(finished_project):
    stored = finished_project.results.perturbation("direct")
    lazy = finished_project.results.lazy_perturbation("direct")
    variable = finished_project.results.store.version("direct/perturbation_influences").variables
    sizes = [sizes[0] for sizes in lazy.chunks]
    assert sizes == list(variable["perturbation_influences"].chunks)
    assert lazy.dims == stored.dims
    some = {"test": ["test-07", "test-01"], "train": "train-33"}
    np.testing.assert_allclose(lazy.sel(some), stored.sel(some), rtol=1e-12)
    np.testing.assert_allclose(lazy, stored, rtol=1e-12)


def test_parameter_influences_are_solves_of_the_training_gradients(finished_project):
    results = finished_project.results
    found = results.parameter_influences("direct")
    assert found.dims == ("train", "param")
    stored = results.open("direct/summary").parameter_influence_norm
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), stored, rtol=1e-10)
    # Symmetry of the curvature: factors times training gradients, seen from the other side.
    module, (x, y) = stored_module(finished_project), finished_project.tensors("test")
    gradients = reference.per_sample_gradients(module, F.cross_entropy, x, y).numpy()
    np.testing.assert_allclose(gradients @ found.values.T, results["direct"].influences, rtol=1e-8)
