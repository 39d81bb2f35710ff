"""Questions to a study by the names of its rows, and pictures of it."""

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from tiny_project import COLUMNS

from influence_dag.errors import StoreError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.query import plots
from influence_dag.query.accessor import strongest
from influence_dag.query.contents import Content, Contents
from influence_dag.query.lazy import _labelled
from influence_dag.query.rows import at_damping
from influence_dag.query.text import _strongest, describe
from influence_dag.stages.dampings import DAMPING, DampingAxis
from influence_dag.store import Coordinate, Layout
from influence_dag.validation import leave_one_out


@pytest.fixture(scope="module")
def study(finished_project):
    return finished_project.results


@pytest.fixture(scope="module")
def influences(study):
    return study["direct"].influences.load()


def test_a_study_answers_as_its_arrays_do(study, influences):
    row = influences.sel(test="test-03")
    xr.testing.assert_identical(study.top_k("test-03", 4), row.idag.top_k(4))
    xr.testing.assert_identical(study.bottom_k("test-03", 4), row.idag.bottom_k(4))
    xr.testing.assert_identical(study.by_label("test-03").load(), row.idag.by_label())
    assert study.top_k(["test-03", "test-05"], 2).dims == ("test", "rank")
    assert study.influences(method="cg").equals(study["cg"].influences)


def test_leaving_a_row_out_has_the_sign_and_size_that_a_refit_finds(finished_project, study):
    """The penalised loss is refitted without each row, from data and module of the test's own."""
    from safetensors.torch import load_file

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    module.double().load_state_dict(
        load_file(finished_project.store / "model/current/model.safetensors")
    )
    rows = [Rows(*finished_project.tensors(split)) for split in ("train", "test")]
    left_out = torch.tensor([0, 7, 21])
    objective = Objective(module, "cross_entropy")
    found = leave_one_out(objective, *rows, weight_decay=0.05, index=left_out)
    said = study.to_loo().values[:, left_out]
    assert np.corrcoef(said.ravel(), found.actual.ravel())[0, 1] > 0.99
    assert 0.9 < (said * found.actual).sum() / (said**2).sum() < 1.4


def test_a_change_is_divided_once(study, influences):
    np.testing.assert_allclose(study.to_loo("test-03"), influences.sel(test="test-03") / 40)
    for turned in (study.to_loo(), study.to_koh_liang(), study.perturbation("direct")):
        with pytest.raises(StoreError, match="weight_sum"):
            turned.idag.to_loo()


def test_changes_of_weighted_rows_are_divided_by_the_sum_of_their_weights(influences):
    weighted = influences.assign_attrs(weight_sum=80.0)
    np.testing.assert_allclose(weighted.idag.to_loo(), influences / 80)


def test_products_of_gradients_say_nothing_of_leaving_out(influences):
    products = influences.assign_attrs(units="loss · loss / parameter²; not divided by n_train")
    with pytest.raises(StoreError, match="take a method with a curvature"):
        products.idag.to_loo()


def test_the_sign_of_koh_and_liang_is_the_other_one(study, influences):
    turned = study.to_koh_liang("test-03")
    np.testing.assert_array_equal(turned, -influences.sel(test="test-03"))
    assert turned.attrs["sign"].startswith("positive: up-weighting the training row raises")


def test_the_influence_of_a_group_is_the_sum_of_its_rows(study, influences):
    group = ["train-03", "train-11", "train-03"]
    found = study.influence_of(group, "test-01")
    expected = influences.sel(test="test-01", train=["train-03", "train-11"]).sum()
    np.testing.assert_allclose(found, expected)
    assert found.attrs["long_name"] == "influence of 2 training rows together on the test loss"
    np.testing.assert_allclose(found.idag.to_loo(), expected / 40)
    gaps = influences.where(influences.train != "train-11")  # as of a slot without a row
    assert np.isnan(gaps.idag.influence_of(group)).all()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda study: study.top_k("tset-03"), "no test row 'tset-03'; did you mean 'test-03'"),
        (lambda study: study.influence_of(["train-1"]), "no train row 'train-1'; did you mean"),
        (lambda study: study.influence_of([]), "name at least one"),
        (lambda study: study.top_k("test-01", method="drect"), "did you mean 'direct'"),
        (lambda study: study.self_influence(method="cg"), "no self-influence of 'cg'"),
        (lambda study: study.plot.spectrum("hesian"), "did you mean 'hessian'"),
        (lambda study: study.plot.scores(["test-01", "test-02"]), "of one test row, not of 2"),
        (lambda study: study.plot.strongest(), "these rows are no images"),
        (lambda study: study.plot.lds(), "has no 'validation/datamodels' yet"),
        (
            lambda study: study.diff("dataset", 1, 1).largest_changes("x"),
            "no variable 'x' in the later version; it has train_x",
        ),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(study, ask, words):
    with pytest.raises(StoreError, match=words):
        ask(study)


def test_a_tree_has_every_artifact_or_those_that_are_asked_for(study):
    tree = study.tree()
    assert {group.lstrip("/") for group in tree.groups} >= set(study.artifacts)
    for asked in (["direct/influences"], "direct/influences"):
        assert study.tree(asked).groups == ("/", "/direct", "/direct/influences")
    of_tree = tree["direct/influences"].influences
    np.testing.assert_array_equal(of_tree, study["direct"].influences)


def test_the_content_of_a_row_is_that_of_its_file(finished_project, study):
    content = Contents(study)["train", "train-07"]
    name, *values, label = finished_project.rows["train"][7]
    assert (content.id, content.label) == (name, label)
    assert content.features == dict(zip(("height", "width", "depth"), values, strict=True))
    assert content.image is None
    assert Contents(study).of("train", ["gone"])[0].features == {}


def test_an_image_is_known_by_its_shape():
    def image(*shape: int):
        return Content(
            "a", inputs={"x": xr.DataArray(np.linspace(0, 2, np.prod(shape)).reshape(shape))}
        ).image

    assert image(8, 8).shape == (8, 8)
    assert image(1, 8, 9).shape == (8, 9)
    assert image(3, 8, 9).shape == (8, 9, 3)
    assert image(3, 8, 9).max() <= 1
    assert image(5) is None
    assert image(4, 5, 6) is None


def test_notebooks_show_pictures(study):
    assert study.plot.scores("test-03", 3)._repr_png_().startswith(b"\x89PNG")


def test_a_grid_has_the_images_of_the_strongest_rows(study, influences, monkeypatch):
    seen = []

    def image(content):
        seen.append(content.id)
        return np.eye(8)

    monkeypatch.setattr(Content, "image", property(image))
    figure = study.plot.strongest(["test-03", "test-05"], 2)
    ends = [influences.sel(test=["test-03", "test-05"]).idag.top_k(2).train.values]
    ends += [influences.sel(test=["test-03", "test-05"]).idag.bottom_k(2).train.values]
    rows = np.concatenate(ends, axis=1).tolist()
    (grid,) = figure.axes
    captions = [text.get_text().partition(" (")[0] for text in grid.texts]
    assert captions == ["test-03", *rows[0], "test-05", *rows[1]]
    (alone,) = study.plot.strongest("test-03", 2).axes
    assert [each.get_text().partition(" (")[0] for each in alone.texts] == captions[:5]
    assert set(seen) == set(captions)


def test_bars_name_rows_and_columns_as_they_are(study):
    def names(figure) -> list[str]:
        return [text.get_text() for text in figure.axes[0].get_yticklabels()]

    bars = names(study.plot.scores("test-03", 2))
    strongest = [
        *study.top_k("test-03", 2).train.values,
        *study.bottom_k("test-03", 2).train.values[::-1],
    ]
    assert [bar.partition(" (")[0] for bar in bars] == strongest
    assert names(study.plot.feature_map("test-03", "train-07")) == ["height", "width", "depth"]
    odd = plots.scores(["$x$", "<script>", "a_b"], np.array([1.0, 0.5, -1]), title="$t$")
    assert names(odd) == ["$x$", "<script>", "a_b"]
    assert not odd.axes[0].get_yticklabels()[0].get_parse_math()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool])
def test_whole_numbers_are_ranked_like_any(dtype):
    scores = np.array([1, np.iinfo(dtype).min if dtype is np.int8 else 0, 1, 0], dtype)
    array = xr.DataArray(scores, dims="train", coords={"train": list("abcd")})
    assert array.idag.top_k(4).train.values.tolist() == list("acdb" if scores[1] < 0 else "acbd")


def test_who_helps_has_a_positive_influence_and_who_harms_a_negative_one():
    """Of rows that all help, the least was said to harm."""
    row = xr.DataArray(
        [2.0, 0.0, 1.0], dims="train", coords={"train": list("abc"), "test": "t", "test_label": 1}
    )
    helps, harms = strongest(row, 3)
    assert (helps.train.values.tolist(), harms.train.values.tolist()) == (["a", "c"], [])
    assert _strongest(row) == ["  t (1)", "    helped by  a +2, c +1", "    harmed by  nobody"]
    assert _strongest(-row)[1] == "    helped by  nobody"


def test_another_damping_than_the_one_that_is_stored_is_refused(study, influences):
    xr.testing.assert_identical(study.influences(damping=0.05).load(), influences)
    for asked in (study.influences, study.top_k, study.self_influence, study.suspects):
        with pytest.raises(StoreError, match=r"damping 0\.5 is none of those stored: \[0\.05\]"):
            asked(damping=0.5)
        with pytest.raises(StoreError, match=r"damping '0\.05' is none of those stored: \[0\.05\]"):
            asked(damping="0.05")


def test_a_damping_that_is_computed_is_found():
    swept = xr.DataArray(np.eye(2), dims=("damping", "test"), coords={"damping": [0.3, 0.05]})
    np.testing.assert_array_equal(at_damping(swept, 0.1 + 0.2), [1.0, 0.0])
    with pytest.raises(StoreError, match=r"damping 0\.31 is none of those stored: \[0\.3, 0\.05\]"):
        at_damping(swept, 0.31)


def test_a_damping_of_many_digits_is_told_and_found_in_few():
    swept = xr.DataArray(
        [[1.0]], dims=("damping", "test"), coords={"damping": [5.000000000000001e-11]}
    )
    at_damping(swept, 5e-11)
    with pytest.raises(StoreError, match=r"stored: \[5e-11\]"):
        at_damping(swept, 1.0)


def test_arrays_that_are_computed_together_take_turns():
    """Of two inputs, or two methods: each swaps a module's parameters, and torch's modes."""
    inside, most = [], []

    def block(tile):
        inside.append(tile)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return np.zeros(tile.shape)

    axis = DampingAxis(Coordinate(DAMPING, (DAMPING,), np.zeros(1)))
    bench: Any = SimpleNamespace(modes=nullcontext)
    made = [
        _labelled(bench, Layout((variable,)), variable, block)
        for name in ("left", "right")
        for variable in [axis.variable(name, ("param", 8, 1), dtype="float64", about={})]
    ]
    dask.compute(*(array.data for array in made), scheduler="threads", num_workers=4)
    assert (len(most), max(most)) == (16, 1)


def test_ids_that_are_numbers_are_asked_for_as_they_are_shown(finished_project, tmp_path):
    project = finished_project.copy(tmp_path)
    for split, rows in project.rows.items():
        project.write(split, [[k, *row[1:]] for k, row in enumerate(rows)])
    project.refresh()
    study = project.results
    best = study.top_k(3, 2).train
    assert best.dtype.kind == "i"
    both = study.influence_of(best.values.tolist())
    xr.testing.assert_identical(study.influence_of(best), both)
    told = [study.relabelled_influences("direct", {key: 2}) for key in (5, "5")]
    xr.testing.assert_identical(*told)
    for label in (None, [1], "two"):
        with pytest.raises(StoreError, match=r"5: the label .* is not a class, a whole number"):
            study.relabelled_influences("direct", {5: label})
    for test in (3, "3"):
        bars = study.plot.feature_map(test, 7).axes[0].get_yticklabels()
        assert [bar.get_text() for bar in bars] == COLUMNS[1:4]
    with pytest.raises(StoreError, match="no test row '77'"):
        study.plot.feature_map(77, 7)
    code = [line.strip() for line in describe(study).splitlines() if ".sel(test=" in line]
    assert len(code) == 2
    for line in code:
        exec(line, {"study": study})
