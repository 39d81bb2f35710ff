"""Types of columns and moments of reading: what a study stores is what its files hold."""

import itertools

import numpy as np
import pytest
from tiny_project import Project
from weighted import Weighted

from influence_dag.errors import DataError
from influence_dag.stages import dataset

MODEL = "from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 1)\n"


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> Project:
    """Ridge regression on targets that happen to be whole numbers, θ pinned."""
    made = Project(tmp_path_factory.mktemp("regression"), model=MODEL, methods={"cg": None})
    made.write_settings(
        model={"loss": "mse", "refit": "pinned", "fit": {"tolerance": 1e-10}}, damping=0.05
    )
    made.refresh()
    return made


def closed_form(made: Project) -> np.ndarray:
    """`∇L(z_test)ᵀ (2 XᵀX/n + λI)⁻¹ ∇L(z_train)` of squared errors, at the stored θ."""
    theta = made.results.open("model").parameters.values
    gradients, hessian = {}, np.zeros(())
    for split in ("train", "test"):
        numbers = np.array([row[1:] for row in made.rows[split]], float)
        x = np.hstack([numbers[:, :3], np.ones((len(numbers), 1))])
        gradients[split] = 2 * (x @ theta - numbers[:, 3])[:, None] * x
        hessian = 2 * x.T @ x / len(x) if split == "train" else hessian
    return gradients["test"] @ np.linalg.solve(hessian + 0.05 * np.eye(4), gradients["train"].T)


def served(made: Project) -> np.ndarray:
    ids = {split: [row[0] for row in made.rows[split]] for split in ("test", "train")}
    return made.results["direct"].influences.sel(**ids).values


def test_whole_targets_are_decimals_as_soon_as_one_is(regression, tmp_path):
    made = regression.copy(tmp_path)
    np.testing.assert_allclose(served(made), closed_form(made), rtol=1e-9)
    made.edit("train", 11, label=1.5)
    updates = made.refresh()
    assert updates["dataset"].info["train"] == {"added": 0, "changed": 1, "removed": 0}
    assert updates["dataset"].info["test"] == {"added": 0, "changed": 0, "removed": 0}
    gradients = updates["gradients"]
    assert gradients.blocks_computed * 4 == gradients.blocks_reused  # of 5 chunks of rows
    np.testing.assert_allclose(served(made), closed_form(made), rtol=1e-9)
    made.edit("train", 11, label=2)
    made.refresh()
    np.testing.assert_allclose(served(made), closed_form(made), rtol=1e-9)
    assert made.results.open("dataset").train_y.dtype == np.int64


@pytest.mark.parametrize("split", ["train", "test"])
def test_either_split_may_have_the_decimals(tmp_path, split):
    made = Project(tmp_path, model=MODEL, methods={"cg": None})
    made.write_settings(model={"loss": "mse"})
    made.edit(split, 3, label=0.5)
    made.refresh()
    np.testing.assert_allclose(served(made), closed_form(made), rtol=1e-9)


OWN_LOSS = MODEL + (
    "\n\ndef loss(output, target):\n"
    "    factor = 1.0 if target.is_floating_point() else 3.0\n"
    "    return factor * (output[:, 0] - target).square()\n"
)


def test_code_that_tells_types_apart_is_never_served_what_the_other_type_gave(tmp_path):
    made = Project(tmp_path, model=OWN_LOSS, methods={"cg": None})
    made.write_settings(model={"loss": "tiny_model:loss"})
    made.refresh()
    made.edit("test", 3, label=0.5)
    made.refresh()
    again = Project(tmp_path / "anew", model=OWN_LOSS, methods={"cg": None})
    again.write_settings(model={"loss": "tiny_model:loss"})
    again.edit("test", 3, label=0.5)
    again.refresh()
    np.testing.assert_allclose(served(made), served(again), rtol=1e-7)


# Files that change while they are read


def swapped(made: Project, monkeypatch, contents) -> None:
    """Before each reading the training file gets the next of some contents."""
    read, left = dataset.load_splits, iter(contents)

    def reading(*arguments):
        (made.root / "train.csv").write_bytes(next(left))
        return read(*arguments)

    monkeypatch.setattr(dataset, "load_splits", reading)


def test_a_file_replaced_between_hash_and_reading_is_not_stored_under_the_old_key(
    regression, tmp_path, monkeypatch
):
    made = regression.copy(tmp_path)
    old = (made.root / "train.csv").read_bytes()
    made.edit("train", 0, label=2)
    between = (made.root / "train.csv").read_bytes()
    made.edit("train", 5, label=2)  # so that there is something to read
    with monkeypatch.context() as patched:
        swapped(made, patched, [between, between])
        made.refresh()
    (made.root / "train.csv").write_bytes(old)
    made.rows["train"] = [list(row) for row in regression.rows["train"]]
    assert not made.refresh()["dataset"].is_current
    np.testing.assert_allclose(served(made), closed_form(made), rtol=1e-9)


def test_a_file_that_never_holds_still_is_an_error_that_says_so(regression, tmp_path, monkeypatch):
    made = regression.copy(tmp_path)
    before = served(made)
    lines = (made.root / "train.csv").read_text()
    made.edit("train", 0, label=2)
    contents = (f"{lines}train-{k},0,0,{k},1\n".encode() for k in itertools.count(100))
    swapped(made, monkeypatch, contents)
    with pytest.raises(DataError, match=r"tiny: the data files change while they are read"):
        made.refresh()
    made.rows = {split: [list(row) for row in rows] for split, rows in regression.rows.items()}
    np.testing.assert_array_equal(served(made), before)


def test_a_decimal_label_of_a_classification_is_told_with_its_row(project):
    project.edit("test", 3, label=0.5)
    with pytest.raises(DataError, match=r"test\.csv: row 'test-03', column 'label'"):
        project.refresh()


@pytest.mark.parametrize(("split", "column"), [("train", "height"), ("test", "height")])
def test_a_stored_number_is_looked_at_again_in_a_smaller_precision(project, split, column):
    project.edit(split, 3, **{column: 1e39})
    project.write_settings(methods={"cg": None}, perturbation=None)
    project.refresh()
    project.write_settings(compute={"dtype": "float32"})
    told = (
        rf"{split}\.csv: id '{split}-03', x: seen 1e\+39, which is infinite in float32 \(1 such\)"
    )
    with pytest.raises(DataError, match=told):
        project.refresh()


@pytest.mark.parametrize("dtypes", [["float32"], ["float64", "float32"]])
def test_weights_that_float32_takes_for_zero_are_told(tmp_path, dtypes):
    """Of rows that weigh 1e-40 each nothing is left, of means over them neither."""
    project = Weighted(tmp_path, methods={"cg": None}, perturbation=None)
    project.write("train", weights=[1e-40] * 40)
    project.write_settings(data={"weight": "importance"})
    for dtype in dtypes[:-1]:
        project.write_settings(compute={"dtype": dtype})
        project.refresh()
    project.write_settings(compute={"dtype": dtypes[-1]})
    told = r"train\.csv: id 'train-00', weight: seen 1e-40, which is 0 in float32 \(\d+ such\)"
    with pytest.raises(DataError, match=told):
        project.refresh()


def test_a_weight_that_float32_takes_for_zero_may_stand_beside_larger_ones(tmp_path):
    project = Weighted(tmp_path, methods={"cg": None}, perturbation=None)
    project.write("train", weights=[1e-40] + [1.0] * 39)
    project.write_settings(data={"weight": "importance"}, compute={"dtype": "float32"})
    project.refresh()
    assert (project.results.influences().isel(train=0) == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8", "bool"])
def test_scaled_inputs_are_rounded_once(tmp_path, dtype):
    project = Project(tmp_path)
    project.settings["data"] = {split: f"{split}.npz" for split in ("train", "test")}
    project.write_settings(data={"features": {"scale": 0.3}})
    x = np.random.default_rng(0).integers(0, 100, size=(12, 3)).astype(dtype)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.arange(12) % 3)
    dataset.refresh(project.bench())
    stored = project.results.open("dataset").train_x
    np.testing.assert_array_equal(stored, x.astype(float) * 0.3)


def test_files_may_gain_and_lose_inputs(tmp_path):
    """What is stored of the rows is of other arrays then."""
    project = Project(tmp_path)
    project.settings["data"] = {split: f"{split}.npz" for split in ("train", "test")}
    project.write_settings()
    rng, numbers = np.random.default_rng(0), {"train": 12, "test": 4}
    for names in (["a"], ["a", "b"], ["b"]):
        for split, n in numbers.items():
            arrays = {name: rng.normal(size=(n, 3)) for name in names}
            np.savez(tmp_path / f"{split}.npz", y=np.arange(n) % 3, **arrays)
        dataset.refresh(project.bench())
        stored = project.results.open("dataset")
        variable = f"train_x_{names[-1]}" if len(names) > 1 else "train_x"
        np.testing.assert_array_equal(stored[variable], np.load(tmp_path / "train.npz")[names[-1]])


def test_rows_are_known_by_the_inputs_that_they_have(tmp_path):
    """Of fewer inputs with the numbers that are stored the hashes were those of all: what is drawn
    fell to other rows than it does where nothing was stored."""
    project = Project(tmp_path)
    project.settings["data"] = {split: f"{split}.npz" for split in ("train", "test")}
    rng = np.random.default_rng(0)
    for split, n in {"train": 12, "test": 4}.items():
        arrays = {name: rng.normal(size=(n, 3)) for name in "abc"}
        np.savez(tmp_path / f"{split}.npz", y=np.arange(n) % 3, **arrays)
    keys = {}
    for names in ("abc", "ab"):
        project.write_settings(data={"features": {"columns": list(names)}})
        dataset.refresh(project.bench())
        keys[names] = project.bench().axis("dataset", "train").keys
    project.remove_store()
    dataset.refresh(project.bench())
    np.testing.assert_array_equal(keys["ab"], project.bench().axis("dataset", "train").keys)
    assert not (keys["ab"] == keys["abc"]).any()
