"""The module that is differentiated is the one that was fitted; rows are always the same."""

import random
import sys

import numpy as np
import pytest
import torch
from tiny_answers import assert_close
from tiny_project import Project

from influence_dag.errors import DataError, ModelError
from influence_dag.objective.modules import seeded
from influence_dag.stages import gradients
from influence_dag.stages.graph import artifacts

FITTING = """
def minimise(module, rows):
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(rows.x), rows.y)
        loss = loss + 0.05 / 2 * sum(p.square().sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
"""
PLAIN = f"""\
import numpy as np
import torch
from torch import nn

MEAN = 0.0


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.temperature = 1.0
        self.mean = torch.zeros(3, dtype=torch.float64)
        self.activation = nn.Identity()
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.register_buffer("saved", torch.ones(3))

    def forward(self, x):
        x = self.activation((x - self.mean - MEAN) * self.unsaved * self.saved)
        return self.layer(x) / self.temperature


def build():
    return Centred()

{FITTING}
"""
HERE = {"device": "cpu"}  # where plain tensors of modules are
LEFT_OUTSIDE = {
    "a plain tensor": ("module.mean = rows.x.mean(0) + 2.0", "'mean'"),
    "a plain number": ("module.temperature = 2.5", "'temperature'"),
    "an unsaved buffer": ("module.unsaved.fill_(0.5)", "'unsaved'"),
    "a global of the module": ("global MEAN; MEAN = 3.0", "a global, a closure"),
    "a closure": ("module.forward = lambda x, f=module.forward: 2 * f(x)", "'forward'"),
    "a hook": (
        "module.layer.register_forward_hook(lambda m, i, o: o + rows.x.mean())",
        "_forward_hooks",
    ),
    "a hook on gradients": (
        "module.layer.register_full_backward_pre_hook(lambda m, g: tuple(2 * e for e in g))",
        "gradients differ",
    ),
    "one module more": (
        "module.add_module('more', nn.Linear(3, 3))",
        "'more.bias', 'more.weight' are in one of them alone, or have two shapes",
    ),
    "a buffer less": ("del module.saved; module.saved = 1", "'saved' are in one of them"),
    "a layer of another width": (
        "module.layer = nn.Linear(3, 5).double()",
        "make every part in model.build, in its shape, and set numbers in the fit",
    ),
    "another module": ("module.activation = nn.Tanh()", "'activation'"),
    "frozen parameters": ("module.layer.bias.requires_grad_(False)", "trainable ('layer.bias')"),
}
TIED = PLAIN.replace(
    "self.temperature = 1.0",
    "self.temperature = 1.0\n        self.second = nn.Linear(3, 3)\n"
    "        self.second.weight = self.layer.weight",
).replace("return self.layer(x)", "return self.second(self.layer(x))")

UNTIED = "module.second.weight = nn.Parameter(module.layer.weight.detach() * 2)"


def test_one_tensor_that_a_fit_makes_two_is_told_by_its_names(tmp_path):
    """As parts of another network it was told, without a name."""
    project = fitted_by(tmp_path, UNTIED, TIED)
    told = "layer.weight and second.weight are one tensor of the .*tied what model.build ties"
    with pytest.raises(ModelError, match=told):
        project.refresh()


def fitted_by(root, line: str, model: str = PLAIN) -> Project:
    body = f"{model}\ndef fit(module, rows):\n    {line}\n    minimise(module, rows)\n"
    project = Project(root, model=body, methods={"cg": None}, damping=0.05, compute=HERE)
    project.settings = project.settings | {"perturbation": None}
    project.settings["model"] = project.settings["model"] | {"fit": "tiny_model:fit"}
    project.write_settings()
    return project


@pytest.mark.parametrize("what", LEFT_OUTSIDE)
def test_what_a_fit_leaves_outside_the_state_dict_is_refused_by_name(tmp_path, what):
    line, named = LEFT_OUTSIDE[what]
    project = fitted_by(tmp_path, line)
    with pytest.raises(ModelError) as caught:
        project.refresh()
    assert named in str(caught.value)
    assert not (project.store / "model/current").exists()


def test_what_a_fit_finds_out_may_be_in_buffers(tmp_path):
    """Against the answer for features that are scaled by hand."""
    project = fitted_by(tmp_path, "module.saved.copy_(1 / rows.x.std(0))")
    project.refresh()
    x = project.tensors("train")[0]
    scale = (1 / x.std(0)).numpy()
    plain = Project(tmp_path / "plain", methods={"cg": None}, damping=0.05)
    plain.write_model("from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 3)\n")
    for split in ("train", "test"):
        rows = project.rows[split]
        plain.write(split, [[r[0], *(np.array(r[1:4]) * scale).tolist(), r[4]] for r in rows])
    plain.write_settings(model={"fit": {"tolerance": 1e-9}})
    plain.refresh()
    assert_close(project.results["direct"].influences, plain.results["direct"].influences, 1e-4)


@pytest.mark.parametrize(
    "change", ["rows.x.sub_(rows.x.mean(0))", "rows.y.numpy()[:] = rows.y.flip(0)"]
)
def test_a_fit_that_changes_its_rows_is_refused(tmp_path, change):
    """θ was told to be at a minimum: of rows that no other stage reads."""
    project = fitted_by(tmp_path, change)
    with pytest.raises(ModelError, match="tiny_model:fit changes its rows in place"):
        project.refresh()


def test_the_loss_that_code_remembers_is_compared_as_well(tmp_path):
    model = PLAIN + (
        "\nWEIGHT = 1.0\n\n\ndef loss(output, target):\n"
        "    return WEIGHT * nn.functional.cross_entropy(output, target, reduction='none')\n"
    )
    project = fitted_by(tmp_path, "global WEIGHT; WEIGHT = 2.0", model)
    project.write_settings(model={"loss": "tiny_model:loss"})
    with pytest.raises(ModelError, match="losses differ by up to"):
        project.refresh()


def test_modules_are_the_same_objects_after_they_were_imported_anew(tmp_path):
    project = fitted_by(tmp_path, "pass")
    project.refresh()
    import tiny_model

    project.edit("train", 0, height=0.1)
    project.refresh()
    assert sys.modules["tiny_model"] is tiny_model


DRAWN = {
    "numpy": "np.random.normal(size=3)",
    "torch": "torch.randn(3).numpy()",
    "python": "[__import__('random').gauss(0, 1) for _ in range(3)]",
}


@pytest.mark.parametrize("generator", DRAWN)
def test_a_build_may_draw_from_the_usual_generators(tmp_path, generator):
    """They start from the fit's seed: each process builds the same module."""
    drawn = f"self.mean = torch.as_tensor(np.asarray({DRAWN[generator]}), dtype=torch.float64)"
    model = PLAIN.replace("self.mean = torch.zeros(3, dtype=torch.float64)", drawn)
    results = []
    for name in ("one", "two"):
        np.random.seed(len(results))  # noqa: NPY002
        random.seed(len(results))
        project = Project(tmp_path / name, model=model, methods={"cg": None}, compute=HERE)
        project.refresh()
        results.append(project.results["direct"].influences.values)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("self.mean = torch.zeros(3, dtype=torch.float64)", "'mean'"),
        ("self.layer = nn.Linear(3, 3)", "model.build: tiny_model:build makes another"),
    ],
)
def test_a_build_that_draws_from_a_generator_without_a_seed_is_refused(tmp_path, where, named):
    drawn = {
        "'mean'": "self.mean = torch.tensor(np.random.default_rng().normal(size=3))",
        named: "self.layer = nn.Linear(3, 3); "
        "self.layer.bias.data += float(np.random.default_rng().normal())",
    }
    text = drawn["'mean'"] if named == "'mean'" else drawn[named]
    project = Project(
        tmp_path, model=PLAIN.replace(where, text), methods={"cg": None}, compute=HERE
    )
    with pytest.raises(ModelError, match=named):
        project.refresh()


def test_a_fit_draws_the_same_numbers_in_each_process(tmp_path):
    line = "module.layer.weight.data += torch.tensor(np.random.normal(size=(3, 3)))"
    found = []
    for name in ("one", "two"):
        np.random.seed(len(found))  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        project = fitted_by(tmp_path / name, f"{line}; return")
        project.refresh()
        found.append(project.results.open("model").parameters.values)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.testing.assert_array_equal(*found)


def test_generators_go_on_as_if_nothing_had_been_drawn():
    def drawn():
        return random.random(), float(np.random.normal()), float(torch.randn(()))  # noqa: NPY002

    def reset():
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    reset()
    wanted = drawn()
    reset()
    with seeded(5):
        inside = drawn()
    assert drawn() == wanted
    with seeded(5):
        assert drawn() == inside


# Data sets that draw ---------------------------------------------------------------------------

DATA = """
class Data(torch.utils.data.Dataset):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        self.y = torch.arange(n) % 3
        self.generator, self.order = torch.Generator().manual_seed(0), list(range(n))
        {made}

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        row = self.order[row]
        return self.x[row]{read}, self.y[row]


def train():
    return Data(24)


def test():
    return Data(6)
"""
MOVING = {
    "an augmentation": ("pass", " + 0.1 * torch.randn(3)", 24),
    "numpy": ("pass", " + 0.1 * np.random.normal(size=3)", 24),
    "now and then": ("pass", " + (row == 17) * np.random.normal(size=3)", 1),
    "a generator of its own": ("pass", " + 0.1 * torch.randn(3, generator=self.generator)", 24),
    "a shuffle without a seed": (
        "self.order = np.random.default_rng().permutation(n).tolist()",
        "",
        None,
    ),
    "noise without a seed": ("self.x += float(np.random.default_rng().normal())", "", 24),
}


def of_data(root, made: str = "pass", read: str = "") -> Project:
    model = PLAIN + DATA.format(made=made, read=read)
    data = {"train": "tiny_model:train", "test": "tiny_model:test", "id": None, "target": None}
    settings = {"methods": {"cg": None}, "perturbation": None, "compute": HERE}
    return Project(root, model=model, data=data, **settings)


@pytest.mark.parametrize("what", MOVING)
def test_rows_that_are_drawn_anew_are_refused_by_name(tmp_path, what):
    made, read, count = MOVING[what]
    project = of_data(tmp_path, made, read)
    with pytest.raises(DataError) as caught:
        project.refresh()
    said = str(caught.value)
    assert said.startswith("data.train: tiny_model:train: row ")
    assert "is another one when it is read again" in said
    if what == "now and then":
        assert "row 17 is" in said
    if count:
        assert f"({count} of 24 rows are)" in said


def test_a_data_set_may_draw_when_it_is_made(tmp_path):
    project = of_data(tmp_path, "self.x += torch.randn(3) + float(np.random.normal())")
    project.refresh()
    torch.manual_seed(77)
    updates = project.refresh()
    assert all(update.is_current for update in updates.values())


def test_rows_are_seen_to_stand_for_themselves_once_and_new_ones_when_they_come(
    tmp_path, monkeypatch
):
    """The model's stage looks at all that it meets; at a pinned θ later rows are looked at then."""
    coupled = """\
from torch import nn


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        far = (x > 50).any().to(x)
        return self.layer(x) + far * x.mean(0)


def build():
    return Coupled()
"""
    project = Project(tmp_path, model=coupled)
    project.write_settings(model={"refit": "pinned"})
    looked, look = [], gradients.check_rows
    monkeypatch.setattr(gradients, "check_rows", lambda *args: (looked.append(1), look(*args)))

    def refresh():
        bench = project.bench()
        for node in artifacts(bench.study):
            if node.name in ("dataset", "model", "gradients"):
                node.refresh(bench)

    refresh()
    assert not looked
    project.edit("train", 3, height=60.0)
    with pytest.raises(ModelError, match="other rows of its batch"):
        refresh()
    assert looked
