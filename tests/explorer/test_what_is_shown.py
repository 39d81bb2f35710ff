"""The numbers on the explorer's pages are those that xarray reads from the store."""

import io
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.image import imread

from influence_dag.explorer import shown, suspicion
from influence_dag.explorer.content import is_picture, overlay, picture
from influence_dag.explorer.opened import Opened

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def influences(looked_at):
    return looked_at.results["direct"].influences.load()


@pytest.fixture(scope="module")
def summary(looked_at):
    return looked_at.results.open("direct/summary").load()


def losses(project, split: str):
    """By plain torch, from the stored parameters."""
    import torch

    x, y = project.tensors(split)
    with torch.no_grad():
        outputs = project.stored_module()(x)
    each = torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    return each.numpy(), outputs.argmax(dim=1).numpy()


@pytest.mark.parametrize("split", ["test", "train"])
def test_stored_losses_and_predictions_are_those_of_the_stored_model(looked_at, summary, split):
    loss, predicted = losses(looked_at, split)
    np.testing.assert_allclose(summary[f"{split}_loss"], loss, rtol=1e-9)
    np.testing.assert_array_equal(summary[f"{split}_predicted"], predicted)


def test_test_rows_come_by_their_loss_with_what_the_model_said(client, summary):
    found = client.get("rows", split="test")
    order = np.argsort(-summary.test_loss.values)
    assert [row["id"] for row in found["rows"]] == summary.test.values[order].tolist()
    for row in found["rows"]:
        mine = summary.sel(test=row["id"])
        assert row["loss"] == pytest.approx(float(mine.test_loss))
        assert row["total"] == pytest.approx(float(mine.test_sum))
        assert row["label"] == str(int(mine.test_label))
        assert row["predicted"] == str(int(mine.test_predicted))
        assert row["wrong"] == (row["label"] != row["predicted"])
    assert found["wrong"] == sum(row["wrong"] for row in found["rows"]) > 0


def test_rows_are_filtered_by_label_by_mistakes_and_by_words(client):
    every = client.get("rows", split="test", sort="file")["rows"]
    by_label = client.get("rows", split="test", label="1")
    assert {row["id"] for row in by_label["rows"]} == {r["id"] for r in every if r["label"] == "1"}
    mistaken = client.get("rows", split="test", wrong="1")
    assert {row["id"] for row in mistaken["rows"]} == {r["id"] for r in every if r["wrong"]}
    assert [row["id"] for row in client.get("rows", search="TEST 07")["rows"]] == ["test-07"]
    none = client.get("rows", search="$nothing")
    assert (none["rows"], none["found"], none["all"]) == ([], 0, 10)


def test_training_rows_come_by_pages_and_the_other_way_round(client, summary):
    sums = summary.train_sum
    down = client.get("rows", split="train", sort="total")
    up = client.get("rows", split="train", sort="total", up="1")
    assert [row["id"] for row in down["rows"]] == [row["id"] for row in up["rows"]][::-1]
    assert down["rows"][0]["id"] == str(sums.idxmax().item())
    assert client.get("rows", split="train", page=7)["rows"] == []


@pytest.mark.parametrize("method", ["direct", "cg"])
def test_one_test_row_has_its_strongest_rows_in_order(client, looked_at, method):
    row = looked_at.results[method].influences.sel(test="test-03").load()
    found = client.get("row", split="test", id="test-03", method=method)
    for kind, ranked in (("helps", row.idag.top_k(8)), ("harms", row.idag.bottom_k(8))):
        assert [each["id"] for each in found[kind]] == ranked.train.values.tolist()
        shown = [each["influence"] for each in found[kind]]
        np.testing.assert_allclose(shown, ranked.values, rtol=1e-12)
    histogram = found["histogram"]
    assert sum(histogram["counts"]) == histogram["all"] == row.size
    assert histogram["beyond"] == int((abs(row) > histogram["edges"][-1]).sum()) > 0
    assert histogram["positive"] == int((row > 0).sum())


def test_one_training_row_says_whom_it_helps_and_whom_it_harms(client, influences):
    found = client.get("row", split="train", id="train-17")
    column = influences.sel(train="train-17")
    assert found["helps"][0]["id"] == str(column.idxmax().item())
    assert found["harms"][0]["influence"] == pytest.approx(float(column.min()))
    assert found["row"]["self_influence"] > 0


def test_a_tables_row_has_its_columns_and_those_that_differ_are_marked(client, looked_at):
    found = client.get("row", split="test", id="test-03")
    values = dict(found["row"]["inputs"][0]["columns"])
    mine = looked_at.rows["test"][3]
    assert values == pytest.approx(dict(zip(("height", "width", "depth"), mine[1:4], strict=True)))
    spread = looked_at.tensors("train")[0].numpy().std(axis=0)
    for each in found["helps"]:
        other = looked_at.rows["train"][int(each["id"][-2:])]
        for column in each["differences"]:
            k = ("height", "width", "depth").index(column["name"])
            apart = (other[1 + k] - mine[1 + k]) / spread[k]
            assert column["apart"] == pytest.approx(apart)
            assert column["differs"] == (abs(apart) >= 1)


def test_a_pair_shows_the_stored_map_and_what_leaving_the_row_out_would_do(
    client, looked_at, influences
):
    found = client.get("pair", test="test-03", train="train-17")
    entry = float(influences.sel(test="test-03", train="train-17"))
    assert found["influence"] == pytest.approx(entry)
    assert found["change"] == pytest.approx(entry / 40)
    stored = looked_at.results.perturbation("direct").sel(test="test-03", train="train-17").load()
    shown = dict(zip(found["maps"][0]["columns"], found["maps"][0]["values"], strict=True))
    assert shown == pytest.approx(dict(zip(stored.feature.values, stored.values, strict=True)))
    assert found["source"] == "stored"


def test_a_map_that_is_not_stored_is_computed_when_somebody_asks(client, looked_at):
    asked = {"test": "test-03", "train": "train-17"}
    before = client.get("pair", **asked, method="cg")
    assert (before["source"], before["maps"]) == ("none", [])
    assert before["project"] == str(looked_at.root)
    assert client.post("compute", asked, method="cg")["done"]
    after = client.get("pair", **asked, method="cg")
    stored = client.get("pair", **asked)["maps"][0]
    mine, theirs = (
        dict(zip(m["columns"], m["values"], strict=True)) for m in (after["maps"][0], stored)
    )
    assert mine == pytest.approx(theirs, rel=1e-6)


def test_two_methods_stand_beside_each_other(client):
    found = client.get("compare", split="test", id="test-03", method="direct", with_method="cg")
    assert found["spearman"] > 0.999
    assert found["other"]["at"]["method"] == "cg"
    assert len(found["points"]) == 40


def test_self_influence_is_drawn_against_loss(client, summary):
    found = client.get("scatter")
    assert (found["shown"], found["largest"], found["all"]) == (40, 40, 40)
    assert found["ids"] == summary.train.values.tolist()
    np.testing.assert_allclose(found["loss"], summary.train_loss, rtol=1e-12)
    np.testing.assert_allclose(found["self_influence"], summary.self_influence, rtol=1e-12)


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("row", {"id": "test-99"}, "no test row 'test-99'"),
        ("row", {"id": "test-03", "method": "drect"}, "did you mean 'direct'?"),
        ("row", {"id": "test-03", "version": 9}, "9"),
        ("row", {"id": "test-03", "version": "x"}, "a whole number is wanted"),
        ("row", {"id": "test-03", "version": "1e400"}, "a whole number is wanted"),
        ("rows", {"page": "nan"}, "a whole number is wanted"),
        ("row", {"id": "test-03", "damping": 7}, "damping 7 is none of those stored: 0.05"),
        ("pair", {"test": "test-03", "train": "<script>"}, "no train row '<script>'"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(client, path, query, words):
    found = client.get(path, **query)
    assert found["status"] == 400
    assert words in found["error"]


def test_pictures_are_told_from_tables():
    assert [is_picture(s) for s in ((8, 8), (1, 28, 28), (32, 32, 3))] == [True] * 3
    assert [is_picture(s) for s in ((64,), (2, 7), (5, 8, 8), (4, 4, 4, 4))] == [False] * 4


def test_ink_is_dark_and_photographs_are_as_they_are():
    ramp = np.linspace(0, 1, 16).reshape(4, 4)
    ink = imread(io.BytesIO(picture(ramp, (0.0, 1.0))))
    np.testing.assert_allclose(ink, 1 - ramp, atol=0.01)
    photograph = imread(io.BytesIO(picture(np.stack([ramp, ramp, ramp]), (0.0, 1.0))))
    np.testing.assert_allclose(photograph[..., 0], ramp, atol=0.01)


def test_a_map_is_blue_where_more_helps_red_where_it_harms_and_clear_at_zero():
    drawn = imread(io.BytesIO(overlay(np.array([[2.0, -1.0, 0.0]] * 3))))
    (blue, red, nothing), strength = drawn[0, :, :3], drawn[0, :, 3]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    np.testing.assert_allclose(strength, [1, 0.5, 0], atol=0.01)
    assert nothing.shape == (3,)


def test_training_rows_come_as_suspicious_as_their_neighbours_and_the_model_find_them(
    client, looked_at
):
    found = client.get("rows", split="train")["rows"]
    suspects = looked_at.results.suspects(40)
    assert [row["id"] for row in found] == suspects.train.values.tolist()
    told = [row["disagreement"] for row in found]
    np.testing.assert_allclose(told, suspects.neighbour_disagreement)
    assert [row["rank"] for row in found] == [*range(1, 41)]
    assert client.get("row", split="test", id="test-03")["row"]["rank"] is None


def test_where_distances_would_take_long_the_model_alone_is_asked(looked_at, monkeypatch):
    monkeypatch.setattr(suspicion, "AFFORDABLE", 40**2 * 3 - 1)
    view = Opened(looked_at.results).view()
    assert suspicion.disagreement(view) is None
    found = looked_at.results.suspects(40, neighbours=0)
    first = [view.train.ids[k] for k in np.argsort(suspicion.ranks(view))]
    assert first == found.train.values.tolist()


def test_the_most_suspicious_rows_are_those_of_suspects(looked_at, client):
    shown = [row["id"] for row in client.get("rows", split="train", sort="suspicion")["rows"]]
    assert shown == looked_at.results.suspects(40).train.values[: len(shown)].tolist()


def test_columns_that_travel_along_are_told_alike_in_tables_and_of_rows():
    rows = SimpleNamespace(kept={"sold": np.array([1234567.0]), "note": np.array(["a  b"])})
    told = shown._snippets(cast(Any, rows), 0)["kept"]
    assert told == [{"name": "sold", "text": "1234567"}, {"name": "note", "text": "a b"}]
