"""Marks are kept, exported and predicted from; a refit then stands beside the prediction."""

import csv
import io
import json
import shutil
import threading
from datetime import date
from urllib.parse import urlencode

import dagster as dg
import numpy as np
import pytest
from tiny_project import Project

from influence_dag.components.edits import observed
from influence_dag.errors import DataError, StoreError
from influence_dag.explorer.edited import _cell, _copy, copies
from influence_dag.explorer.marks import Marks
from influence_dag.explorer.outcome import export, outcome, outcomes, predicted
from influence_dag.store.posix.locks import locked
from influence_dag.study.data import DataSettings

pytest.importorskip("starlette")

from starlette.requests import Request

from influence_dag.explorer.app import Explorer
from influence_dag.explorer.pair import pair
from influence_dag.study.loading import load_study


@pytest.fixture(scope="module")
def explorer(looked_at) -> Explorer:
    return Explorer(looked_at.results)


def test_a_mark_is_kept_until_it_is_taken_away(client, looked_at):
    client.post("mark", {"id": "train-01", "action": "keep", "note": "<b>$looked$</b>"})
    file = looked_at.store.with_name("tiny.edits") / "marks.json"
    kept = {"action": "keep", "note": "<b>$looked$</b>"}
    assert json.loads(file.read_text())["marks"] == {"train-01": kept}
    row = client.get("row", split="train", id="train-01")["row"]
    assert row["mark"] == kept
    client.post("mark", {"id": "train-01", "action": None})
    assert json.loads(file.read_text())["marks"] == {}


def test_two_explorers_lose_no_mark_of_each_other(tmp_path, monkeypatch):
    """One has read the list and not yet written it when the other comes."""
    one, other = (Marks(str(tmp_path / "tiny")) for _ in range(2))
    read, late = one.all, threading.Thread(target=other.put, args=("train-02", "drop"))

    def slow():
        found = read()
        late.start()
        late.join(0.3)
        return found

    monkeypatch.setattr(one, "all", slow)
    one.put("train-01", "keep")
    late.join()
    assert set(other.all()) == {"train-01", "train-02"}


def test_labels_that_a_refresh_overtakes_are_kept_for_no_other_version(looked_at, tmp_path):
    project = looked_at.copy(tmp_path)
    explorer = Explorer(project.results)
    explorer.marks.put("train-04", "relabel", "2")
    compute = explorer.opened.results.relabelled_influences

    def overtaken(*asked):
        project.edit("train", 7, height=3.5)
        project.refresh()
        return compute(*asked)

    explorer.opened.results.relabelled_influences = overtaken
    with pytest.raises(StoreError, match="for the current version alone"):
        explorer.relabels(Request({"type": "http", "query_string": b""}), {})
    assert not explorer._relabelled


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ({"id": "train-99", "action": "drop"}, "no train row 'train-99'"),
        ({"id": "train-01", "action": "erase"}, "'erase' is no mark"),
        ({"id": "train-01", "action": "relabel"}, "none of the labels 0, 1, 2"),
        ({"id": "train-01", "action": "relabel", "label": "7"}, "none of the labels 0, 1, 2"),
        ({"id": 1, "action": "drop"}, "a text is wanted"),
        ({"id": "train-01", "action": "relabel", "label": 1}, "label is 1; a text is wanted"),
        ({"id": "train-01", "action": "drop", "note": "x" * 3000}, "3,000 characters"),
        ([], "no JSON object"),
    ],
)
def test_a_mark_that_says_nothing_is_refused(client, mark, words):
    answer = client.post("mark", mark)
    assert answer["status"] == 400
    assert words in answer["error"]


def test_a_file_of_marks_that_cannot_be_read_is_left_as_it_is(tmp_path):
    marks = Marks(str(tmp_path / "study"))
    marks.put("a", "drop")
    file = tmp_path / "study.edits" / "marks.json"
    for content in ("{", '{"format": 1, "marks": {"a": {"action": "rm"}}}', '{"marks": {}}', "[]"):
        file.write_text(content)
        with pytest.raises(StoreError, match="move it away"):
            marks.put("b", "drop")
        assert file.read_text() == content


def test_marks_of_a_store_in_memory_are_held_and_not_exported():
    marks = Marks("memory://scratch/tiny")
    marks.put("a", "drop")
    assert marks.all() == {"a": {"action": "drop", "note": ""}}
    assert (marks.edits, marks.shown) == ([], None)
    with pytest.raises(StoreError, match="this store is in no folder"):
        marks.freeze({})


def test_an_export_that_fails_leaves_no_half_an_edit(tmp_path):
    marks = Marks(str(tmp_path / "study"))
    with pytest.raises(StoreError, match="exporting an edit"):
        marks.freeze({"marks.csv": b"", "no/such/folder.csv": b""})
    assert [each.name for each in (tmp_path / "study.edits").iterdir()] == [".lock"]
    assert (marks.freeze({"a": b"1"}), marks.freeze({"a": b"2"})) == (1, 2)
    assert [(marks.place(k) / "a").read_bytes() for k in marks.edits] == [b"1", b"2"]


def test_who_waits_too_long_to_mark_a_row_is_sent_to_no_setting(tmp_path, monkeypatch):
    monkeypatch.setattr("influence_dag.explorer.marks.PATIENCE", 0.1)
    marks = Marks(str(tmp_path / "study"))
    marks.put("a", "drop")
    with locked(marks.folder / ".lock", timeout=0), pytest.raises(StoreError) as error:
        marks.put("b", "drop")
    assert str(error.value).endswith("waited 0.1 s. Try again when it is done")
    assert list(marks.all()) == ["a"]


def test_dropping_rows_is_predicted_by_the_sum_of_their_influences(explorer, looked_at):
    marks = {name: {"action": "drop"} for name in ("train-03", "train-21", "train-39")}
    found = predicted(explorer.opened.view("direct"), marks, {})
    influences = looked_at.results["direct"].influences
    np.testing.assert_allclose(found["change"], influences.sel(train=list(marks)).sum("train") / 40)
    assert (found["drops"], found["unknown"]) == (3, {})


def test_relabelling_is_predicted_by_the_difference_of_two_gradients(explorer, looked_at):
    marks = {"train-04": {"action": "relabel", "label": "2"}}
    view = explorer.opened.view("direct")
    assert predicted(view, marks, {})["unknown"] == {"train-04": "2"}
    explorer._relabel(view, {"train-04": "2"})
    found = predicted(view, marks, explorer._known(view))
    influences = looked_at.results["direct"].influences.sel(train="train-04").values
    np.testing.assert_allclose(
        found["change"], (influences - relabelled(looked_at)) / 40, rtol=1e-6
    )


def relabelled(project: Project) -> np.ndarray:
    """`s_testᵀ ∇L((x_4, 2))` by plain autograd."""
    import torch

    module = project.stored_module()
    x, _ = project.tensors("train")
    loss = torch.nn.functional.cross_entropy(module(x[4:5]), torch.tensor([2]))
    parts = torch.autograd.grad(loss, list(module.parameters()))
    gradient = torch.cat([part.reshape(-1) for part in parts])
    return project.results.influence_factors("direct").values @ gradient.numpy()


@pytest.mark.parametrize("label", ["7", "-1", "0.5", "two", "nan"])
def test_a_label_that_is_no_class_is_refused(looked_at, label):
    with pytest.raises(StoreError, match="not a class, a whole number from 0 to 2"):
        looked_at.results.relabelled_influences("direct", {"train-04": label})


def test_a_class_that_no_training_row_has_is_an_output_all_the_same(looked_at, tmp_path):
    """Labels 0 and 1 alone, of a network of three outputs."""
    project = looked_at.copy(tmp_path)
    project.write("train", [[*row[:-1], row[-1] % 2] for row in project.rows["train"]])
    project.refresh()
    found = project.results.relabelled_influences("direct", {"train-04": 2})
    np.testing.assert_allclose(found.values[:, 0], relabelled(project), rtol=1e-9)


def test_rows_that_there_are_not_cannot_be_relabelled(looked_at):
    with pytest.raises(StoreError, match="no training row 'train-77'"):
        looked_at.results.relabelled_influences("direct", {"train-77": 1})
    with pytest.raises(StoreError, match="no row is named"):
        looked_at.results.relabelled_influences("direct", {})


def test_nothing_marked_is_nothing_exported(client):
    client.post("clear", {})
    assert "nothing is marked" in client.post("export", {})["error"]


@pytest.fixture(scope="module")
def loop(finished_project, tmp_path_factory):
    """The loop once: mark, export, put the copy in place, refresh."""
    project = finished_project.copy(tmp_path_factory.mktemp("loop"))
    explorer = Explorer(project.results)
    explorer.marks.put("train-04", "relabel", "2", note="said, quietly")
    for name in ("train-03", "train-21"):
        explorer.marks.put(name, "drop")
    explorer.marks.put("train-05", "keep")
    view = explorer.opened.view("direct")
    explorer._relabel(view, {"train-04": "2"})
    told = export(view, explorer.marks, explorer._known(view))
    before = outcome(explorer.opened, explorer.marks, 1)
    folder = project.store.with_name("tiny.edits") / "0001"
    edited = (folder / "edited-train.csv").read_bytes()
    (project.root / "train.csv").write_bytes(edited)
    losses = project.results.open("direct/summary").test_loss.load()
    project.refresh()
    return project, explorer, folder, told, before, losses


def test_the_edited_copy_is_the_file_but_for_the_marks(loop):
    project, _, folder, told, _, _ = loop
    assert told["copies"] == ["edited-train.csv"]
    rows = list(csv.reader((folder / "edited-train.csv").open()))
    expected = [list(map(str, row)) for row in project.rows["train"]]
    expected[4][-1] = "2"
    assert rows[1:] == [row for row in expected if row[0] not in ("train-03", "train-21")]


def test_products_of_gradients_foretell_no_change(tmp_path):
    methods = {"direct": None, "cg": None, "identity": {}}
    project = Project(tmp_path, methods=methods, perturbation=None)
    project.refresh()
    explorer = Explorer(project.results)
    explorer.marks.put("train-03", "drop")
    view = explorer.opened.view()
    shown = pair(view, explorer.contents, explorer.maps, "test-01", "train-03", {})
    assert shown["change"] is None
    assert "say nothing of leaving rows out" in shown["no_change"]
    outlook = explorer.edits(asked(method="identity"))["outlook"]
    assert (outlook["no_change"], outlook["mean"]) == (shown["no_change"], None)
    assert any(
        "Nothing is predicted" in words for words in export(view, explorer.marks, {})["said"]
    )
    project.write("train", [row for row in project.rows["train"] if row[0] != "train-03"])
    project.refresh()
    (edit,) = outcomes(explorer.opened, explorer.marks)
    assert (edit["state"], edit["predicted_mean"]) == ("done", None)
    assert edit["actual_mean"] == pytest.approx(edit["loss_now"] - edit["loss_before"])


def asked(**query: str) -> Request:
    return Request({"type": "http", "query_string": urlencode(query).encode()})


def test_marks_are_exported_as_a_table(loop):
    rows = list(csv.DictReader((loop[2] / "marks.csv").open()))
    assert list(rows[0]) == ["id", "action", "label", "new_label", "note"]
    assert list(rows[0].values()) == ["train-04", "relabel", "1", "2", "said, quietly"]
    assert [row["action"] for row in rows] == ["relabel", "drop", "drop", "keep"]


def test_an_edit_waits_for_the_refresh(loop):
    assert loop[4]["state"] == "waiting"
    assert "refresh the study" in loop[4]["why"]


def test_predicted_and_actual_stand_beside_each_other(loop):
    project, explorer, _, _, _, before = loop
    found = outcome(explorer.opened, explorer.marks, 1)
    now = project.results.open("direct/summary").test_loss.load()
    assert found["state"] == "done"
    assert found["actual_mean"] == pytest.approx(float((now - before).mean()))
    assert found["points"]["actual"] == pytest.approx((now - before).values.tolist())
    assert (found["followed"], found["acted"], found["otherwise"]) == (3, 3, 0)
    assert found["pearson"] > 0.9, "a prediction of three rows of 40"
    assert 0.5 < found["slope"] < 2


def test_dagster_is_told_of_marks_edits_and_outcomes(loop):
    project, explorer, *_ = loop
    study = load_study(project.folder)
    seen = observed(study)
    assert seen.asset_key == dg.AssetKey(["tiny", "edits"])
    told = {name: value.value for name, value in seen.metadata.items() if name != "outcomes"}
    found = outcome(explorer.opened, explorer.marks, 1)
    assert told == {
        "marks": 4, "to_relabel": 1, "to_drop": 2, "edits": 1,
        "predicted_change_of_mean_loss": pytest.approx(found["predicted_mean"]),
        "actual_change_of_mean_loss": pytest.approx(found["actual_mean"]),
    }  # fmt: skip
    (row,) = seen.metadata["outcomes"].records
    assert (row.data["edit"], row.data["state"]) == ("1", "done")
    before = seen.tags["dagster/data_version"]
    assert observed(study).tags["dagster/data_version"] == before
    one = next(iter(explorer.marks.all()))
    kept = explorer.marks.all()[one]
    explorer.marks.put(one, "keep", note="looked at again")
    assert observed(study).tags["dagster/data_version"] != before
    explorer.marks.put(one, kept["action"], kept.get("label"), kept["note"])


def test_where_nobody_has_marked_anything_nothing_is_told(project):
    assert observed(load_study(project.folder)) is None


def test_marks_that_the_data_have_followed_are_not_predicted_again(loop):
    _, explorer, *_ = loop
    found = predicted(explorer.opened.view("direct"), explorer.marks.all(), {})
    assert (found["drops"], found["unknown"], found["done"]) == (0, {}, 3)


def test_an_edit_by_a_method_that_is_gone_does_not_hide_the_others(loop):
    _, explorer, folder, *_ = loop
    other = folder.with_name("0002")
    shutil.copytree(folder, other)
    told = json.loads((folder / "edit.json").read_text())
    (other / "edit.json").write_text(json.dumps(told | {"method": "lissa", "damping": 7.0}))
    latest, first = outcomes(explorer.opened, explorer.marks)
    assert (latest["state"], first["state"]) == ("unreadable", "done")
    assert "no influences of 'lissa'" in latest["why"]
    (other / "edit.json").write_text(json.dumps(told | {"damping": 7.0}))
    assert outcome(explorer.opened, explorer.marks, 2)["state"] == "done", "losses have no λ"
    shutil.rmtree(other)


def test_an_edit_whose_file_is_lost_does_not_hide_the_others(loop):
    _, explorer, folder, *_ = loop
    other = folder.with_name("0099")
    shutil.copytree(folder, other)
    (other / "edit.json").write_text("[")
    lost, first = outcomes(explorer.opened, explorer.marks)
    shutil.rmtree(other)
    assert (lost["number"], lost["state"], first["state"]) == (99, "unreadable", "done")
    assert "0099/edit.json cannot be read" in lost["why"]
    assert lost.keys() - {"why"} <= first.keys()


def test_data_that_changed_otherwise_too_are_told(loop):
    _, explorer, folder, *_ = loop
    other = folder.with_name("0002")
    shutil.copytree(folder, other)
    with np.load(folder / "predicted.npz") as stored:
        arrays = dict(stored)
    arrays["keys"][9] += 1  # as if the row had been another before
    arrays["train"][10] = "train-gone"
    np.savez(other / "predicted.npz", **arrays)
    assert outcome(explorer.opened, explorer.marks, 2)["otherwise"] == 3, "changed, gone, new"
    shutil.rmtree(other)


def test_a_test_row_that_is_another_now_is_not_compared_whatever_the_damping_was(loop):
    _, explorer, folder, *_ = loop
    whole = outcome(explorer.opened, explorer.marks, 1)
    other = folder.with_name("0002")
    shutil.copytree(folder, other)
    with np.load(folder / "predicted.npz") as stored:
        arrays = dict(stored)
    arrays["test_keys"][2] += 1
    np.savez(other / "predicted.npz", **arrays)
    told = json.loads((other / "edit.json").read_bytes())
    (other / "edit.json").write_text(json.dumps(told | {"damping": 7.0}))  # of a sweep that was
    found = outcome(explorer.opened, explorer.marks, 2)
    assert (whole["rows"], found["rows"]) == (10, 9)
    del whole["points"]["actual"][2]
    assert found["points"]["actual"] == whole["points"]["actual"]
    shutil.rmtree(other)


def test_an_older_version_is_looked_at_as_it_was(loop):
    _, explorer, *_ = loop
    old, new = (explorer.opened.view("direct", version=number) for number in (1, 2))
    assert (len(old.train), len(new.train)) == (40, 38)
    place = old.train.position("train-03")
    shown = explorer.contents.shown(old.train, place)
    assert shown["dataset"] == 1, "its content is in the version that still had the row"
    assert old.said("train_loss", "train") is not None


def edited(text: str, tmp_path, marks: dict, **data) -> tuple[str, set]:
    """A copy of a table with marks applied."""
    file = tmp_path / "rows.csv"
    file.write_text(text)
    settings = DataSettings.model_validate(
        {"train": "rows.csv", "test": "t.csv", "id": "id", **data}
    )
    content, found = _copy(file, settings, marks)
    return content.decode(), found


def test_a_copy_keeps_every_cell_that_is_not_marked_as_it_stands(tmp_path):
    text = 'id,a,note,y\n007,1.50,"x, ""y""",cat\n 8 ,NA,,dog\n9,1e3,<b>,cat\n'
    marks = {"8": {"action": "relabel", "label": "cat"}, "9": {"action": "drop"}}
    copy, found = edited(text, tmp_path, marks, target="y")
    assert copy == 'id,a,note,y\n007,1.50,"x, ""y""",cat\n 8 ,NA,,cat\n'
    assert found == {"8", "9"}


def test_a_copy_is_written_as_the_file_is(tmp_path):
    form = {"separator": ";", "decimal": ","}
    marks = {"b": {"action": "relabel", "label": "1.5"}}
    copy, _ = edited(",id,x, ,y\n0,a,1,,1\n1,b,2,,2\n", tmp_path, marks, target="y")
    assert copy.splitlines()[0] == ",id,x, ,y", "columns without a name get none"
    copy, _ = edited("id;x;y\na;0,5;1\nb;1,5;2\n", tmp_path, marks, target="y", csv=form)
    assert copy == "id;x;y\na;0,5;1\nb;1,5;1,5\n"


def test_a_file_that_has_lost_its_target_is_not_copied(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv: no target column 'y' \(data\.target\)"):
        edited("id,a\n1,2\n", tmp_path, {}, target="y")


def test_a_parquet_file_keeps_the_types_of_its_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"id": ["a", "b", "c"], "x": [0.5, 1, 2], "y": [0, 1, 2]})
    frame.to_parquet(tmp_path / "rows.parquet")
    settings = DataSettings(train="rows.parquet", test="t.parquet", id="id", target="y")
    marks = {"a": {"action": "drop"}, "c": {"action": "relabel", "label": "1"}}
    content, _ = _copy(tmp_path / "rows.parquet", settings, marks)
    copy = pd.read_parquet(io.BytesIO(content))
    assert copy.dtypes.to_dict() == frame.dtypes.to_dict()
    assert copy.values.tolist() == [["b", 1.0, 1], ["c", 2.0, 1]]


def test_a_parquet_file_is_copied_in_its_own_types(tmp_path):
    """Whole numbers with a gap, as Arrow has them, are decimals in pandas."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "id": [b"a", b" b ", b"c"],
        "code": pa.array([2**60 + 1, None, 3]),
        "day": pa.array([1, 2, 3], pa.date32()),
        "few": pa.array([[1], [2, 3], []], pa.list_(pa.int8())),
        "y": pa.array(["u", "v", "u"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    settings = DataSettings(train="rows.parquet", test="t.parquet", id="id", target="y")
    marks = {"b": {"action": "relabel", "label": "u"}, "c": {"action": "drop"}}
    content, found = _copy(tmp_path / "rows.parquet", settings, marks)
    copy, before = parquet.read_table(io.BytesIO(content)), pa.table(columns)
    assert found == {"b", "c"}
    assert copy.schema == before.schema
    assert copy.drop(["y"]).equals(before.drop(["y"])[:2])
    assert copy["y"].to_pylist() == ["u", "u"]


@pytest.mark.parametrize(
    ("kind", "label", "cell"),
    [
        ("bool", "False", False),
        ("int64", "2", 2),
        ("int64", "2.0", 2),
        ("int64", "9007199254740993", 9007199254740993),
        ("double", "2.5", 2.5),
        ("string", "2.0", "2.0"),
        ("date32", "2024-05-01", date(2024, 5, 1)),
    ],
)
def test_a_label_is_written_as_its_column_is(kind, label, cell):
    pa = pytest.importorskip("pyarrow")
    assert _cell(label, pa.type_for_alias(kind)) == cell
    with pytest.raises(StoreError, match=r"2\.5 is none that a column of int64 can hold"):
        _cell("2.5", pa.int64())


def test_ids_that_pandas_kept_as_its_index_are_found(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"x": [0.5, 1], "y": [0, 1]}, index=pd.Index(["a", "b"], name="id"))
    frame.to_parquet(tmp_path / "rows.parquet")
    settings = DataSettings(train="rows.parquet", test="t.parquet", id="id", target="y")
    content, found = _copy(tmp_path / "rows.parquet", settings, {"a": {"action": "drop"}})
    assert found == {"a"}
    assert pd.read_parquet(io.BytesIO(content)).equals(frame[1:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": "tiny_model:rows"}, "come from code"),
        ({"train": "/etc/hostname"}, "lies outside of the project"),
        ({"train": "pyproject.toml"}, "neither a .csv"),
        ({"train": "gone.csv"}, "gone.csv"),
        ({"id": None, "train": "train.csv"}, "no column of ids"),
    ],
)
def test_where_no_copy_can_be_made_a_sentence_says_why(explorer, monkeypatch, data, words):
    version = explorer.opened.version("direct/influence_factors")
    told = json.loads(version.attrs["study_settings"])
    told["settings"]["data"] |= data
    monkeypatch.setitem(version.attrs, "study_settings", json.dumps(told))
    files, said = copies(explorer.opened, "direct", {"train-01": {"action": "drop"}})
    assert files == {}
    assert words in said[0]


def test_a_copy_of_a_file_that_counts_its_classes_has_their_numbers(tmp_path):
    """By their names the copy would hold words among numbers, which nobody reads."""
    marks = {"b": {"action": "relabel", "label": "dog"}}
    classes = {"target": "y", "classes": ["cat", "dog"]}
    copy, _ = edited("id,x,y\na,1,1\nb,2,0\n", tmp_path, marks, **classes)
    assert copy == "id,x,y\na,1,1\nb,2,1\n"
    copy, _ = edited("id,x,y\na,1,true\nb,2,false\n", tmp_path, marks, **classes)
    assert copy == "id,x,y\na,1,true\nb,2,True\n"
    copy, _ = edited("id,x,y\na,1,dog\nb,2,cat\n", tmp_path, marks, **classes)
    assert copy == "id,x,y\na,1,dog\nb,2,dog\n"
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"id": ["a", "b"], "x": [1.0, 2.0], "y": [1, 0]})
    frame.to_parquet(tmp_path / "rows.parquet")
    settings = DataSettings(train="rows.parquet", test="t.parquet", id="id", **classes)
    content, _ = _copy(tmp_path / "rows.parquet", settings, marks)
    assert pd.read_parquet(io.BytesIO(content)).y.tolist() == [1, 1]
