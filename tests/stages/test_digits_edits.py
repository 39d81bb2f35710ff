"""Edits of the bundled digits at a pinned model and curvature: what they touch, what they leave.

One project is edited again and again: the tests follow each other, and the last but one compares
with a run from nothing. The campaign compares after every edit, and fits to the end.
"""

import csv
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from project_copy import copy_project
from tiny_answers import assert_close, computed

from influence_dag.errors import DataError
from influence_dag.query.results import StudyResults, open_study
from influence_dag.stages.graph import artifacts
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.loading import load_study

TEST, TRAIN = 64, 128  # rows a chunk
PAIRS = ("direct/influences", "direct/perturbation_influences")
FITTED = ("model", "hessian", "direct/curvature")


@dataclass
class Digits:
    """The project somewhere else, its files read and written as lists of lines."""

    root: Path
    settings: dict[str, Any]
    thorough: bool = False

    def __post_init__(self) -> None:
        self.write_settings()

    def write_settings(self, **changes: Any) -> None:
        self.settings = self.settings | changes
        content = {"type": "influence_dag.components.InfluenceStudy", "attributes": self.settings}
        (self.root / "assets/digits/defs.yaml").write_text(yaml.safe_dump(content))

    def path(self, split: str) -> Path:
        return self.root / f"data/digits/{split}.csv"

    def rows(self, split: str) -> list[list[str]]:
        with self.path(split).open(newline="") as file:
            return list(csv.reader(file))[1:]

    def write(self, split: str, rows: Iterable[list[str]]) -> None:
        header = self.path(split).read_text().partition("\n")[0]
        lines = [header, *(",".join(row) for row in rows)]
        self.path(split).write_text("\n".join(lines) + "\n")

    def refresh(self) -> dict[str, Update]:
        bench = Workbench(load_study(self.root / "assets/digits"))
        return {node.name: node.refresh(bench) for node in artifacts(bench.study)}

    @property
    def results(self) -> StudyResults:
        return open_study(self.root / "data/store/digits")

    def version(self, artifact: str) -> Version:
        return self.results.store.version(artifact)

    def from_nothing(self, kept: Iterable[str]) -> StudyResults:
        """A run on the same files that starts from the `kept` artifacts alone."""
        folder = self.root.with_name("scratch")
        shutil.rmtree(folder, ignore_errors=True)
        other = Digits(copy_project(folder), self.settings)
        for path in (self.root / "data/digits").glob("*.csv"):
            shutil.copy(path, other.root / "data/digits" / path.name)
        for name in kept:
            stored = other.root / "data/store/digits" / name
            shutil.copytree(self.root / "data/store/digits" / name, stored, symlinks=True)
        other.refresh()
        return other.results


def study_settings(root: Path, *, quick: bool) -> dict[str, Any]:
    """The bundled study's, θ and the curvature pinned, smaller chunks; `quick` fits less."""
    settings = yaml.safe_load((root / "assets/digits/defs.yaml").read_text())["attributes"]
    fit = settings["model"]["fit"] | ({"tolerance": 2e-3} if quick else {})
    settings["model"] |= {"fit": fit, "refit": "pinned"}
    settings["curvature"] = {"refresh": "pinned"}
    settings["methods"] = {"direct": {}}
    settings["summary"] = {"self_influence": not quick}
    settings["store"] = {"path": "data/store", "chunks": {"test": TEST, "train": TRAIN}}
    return settings


@pytest.fixture(
    scope="module", params=["quick", pytest.param("thorough", marks=pytest.mark.campaign)]
)
def digits(tmp_path_factory, request) -> Digits:
    root = copy_project(tmp_path_factory.mktemp("digits") / "project")
    quick = request.param == "quick"
    project = Digits(root, study_settings(root, quick=quick), thorough=not quick)
    if quick:  # two chunks of test rows, the second not full
        project.write("test", project.rows("test")[:105])
    project.refresh()
    return project


Chunks = dict[str, set[tuple[int, ...]]]  # array → its chunks


def files(version: Version) -> dict[str, dict[tuple[int, ...], tuple[int, int]]]:
    """Array → chunk → (inode, size) of its file, straight from the folder."""
    found = {}
    for name in version.variables:
        found[name] = {
            tuple(map(int, file.name.split(".")[1:])): (file.stat().st_ino, file.stat().st_size)
            for file in (version.path / name).glob("c*")
        }
    return found


@dataclass
class Refreshed:
    """What a refresh did: the files that are new, chunk by chunk, and what it reported."""

    new: dict[str, Chunks]
    updates: dict[str, Update]


def refresh(digits: Digits) -> Refreshed:
    """Refresh, and hold that what was reported is what the folders show."""
    names = digits.results.artifacts
    before = {name: files(digits.version(name)) for name in names}
    updates, new = digits.refresh(), {}
    for name in names:
        after = files(digits.version(name))
        kept = {array: before[name].get(array, {}) for array in after}
        new[name] = {
            array: {i for i, file in chunks.items() if kept[array].get(i) != file}
            for array, chunks in after.items()
        }
        assert updates[name].blocks_computed == sum(map(len, new[name].values())), name
        written = sum(after[name_][i][1] for name_, chunks in new[name].items() for i in chunks)
        assert updates[name].bytes_written == written, name
        assert (updates[name].bytes_written == 0) == updates[name].is_current, name
    if digits.thorough:
        assert_as_from_nothing(digits)
    return Refreshed(new, updates)


def slots(digits: Digits, split: str, ids: Iterable[str]) -> np.ndarray:
    stored = digits.version("dataset").coordinate(split).tolist()
    return np.array([stored.index(identity) for identity in ids])


def columns(digits: Digits, name: str, which: set[int]) -> Chunks:
    """All chunks of the arrays of pairs in some columns of chunks."""
    version, found = digits.version(name), {}
    for array, variable in version.variables.items():
        grid = np.ndindex(variable.grid)
        found[array] = {index for index in grid if index[1] in which}
    return found


def assert_only_columns(digits: Digits, done: Refreshed, which: set[int]) -> None:
    """Gradients and pairs of these train chunks are new; nothing that was fitted or solved is."""
    for chunks in done.new["gradients"].values():
        assert {index[0] for index in chunks} == which
    for name in PAIRS:
        assert done.new[name] == columns(digits, name, which), name
    for name in (*FITTED, "direct/influence_factors"):
        assert done.updates[name].is_current, name


def assert_as_from_nothing(digits: Digits) -> None:
    scratch = digits.from_nothing(FITTED)
    for name, array in (
        ("direct/influence_factors", "influence_factors"),
        ("direct/influences", "influences"),
        ("direct/perturbation_influences", "perturbation_influences"),
        ("direct/summary", "train_sum"),
        ("direct/summary", "test_sum"),
    ):
        seen, wanted = (each.open(name)[array].load() for each in (digits.results, scratch))
        rows = {split: wanted[split] for split in ("test", "train") if split in wanted.dims}
        assert {split: seen.sizes[split] for split in rows} == {s: len(i) for s, i in rows.items()}
        assert_close(seen.sel(rows), wanted.values, 1e-6)
    shutil.rmtree(digits.root.with_name("scratch"))


def another_image(row: list[str]) -> list[str]:
    identity, *pixels, label = row
    return [identity, *pixels[::-1], label]


def test_ten_changed_training_rows_cost_the_two_chunks_that_hold_them(digits):
    rows = digits.rows("train")
    places = [130, 135, 140, 200, 255, 640, 650, 700, 701, 767]
    for place in places:
        rows[place] = another_image(rows[place])
    digits.write("train", rows)
    done = refresh(digits)
    assert_only_columns(digits, done, {130 // TRAIN, 767 // TRAIN})
    assert done.updates["dataset"].info["train"] == {"added": 0, "changed": 10, "removed": 0}
    share = done.updates["direct/perturbation_influences"].bytes_written / sum(
        size
        for chunks in files(digits.version("direct/perturbation_influences")).values()
        for _, size in chunks.values()
    )
    assert share < 0.25


def test_a_hundred_added_rows_cost_the_last_chunks(digits):
    rows = digits.rows("train")
    new = [[f"train-new-{k}", *another_image(row)[1:]] for k, row in enumerate(rows[:100])]
    digits.write("train", [*new[:50], *rows, *new[50:]])
    done = refresh(digits)
    added = slots(digits, "train", (row[0] for row in new))
    assert added.min() == 1500
    assert_only_columns(digits, done, set((added // TRAIN).tolist()))


def test_fifty_removed_rows_leave_holes_in_their_chunks(digits):
    rows = digits.rows("train")
    gone = slots(digits, "train", (row[0] for row in rows[60:110]))
    digits.write("train", rows[:60] + rows[110:])
    done = refresh(digits)
    assert_only_columns(digits, done, set((gone // TRAIN).tolist()))
    assert digits.results["direct"].sizes["train"] == 1550
    raw = digits.version("direct/influences").open()
    assert raw.sizes["train"] == 1600
    assert not raw.train_valid.values[gone].any()
    assert raw.influences.isel(train=gone).isnull().all()


def test_another_order_of_the_files_costs_nothing(digits):
    for split in ("train", "test"):
        digits.write(split, digits.rows(split)[::-1])
    done = refresh(digits)
    assert computed(done.updates) == set()


def test_a_renamed_column_is_an_error_and_loses_nothing(digits):
    text = digits.path("train").read_text()
    before = {name: digits.version(name).data_version for name in digits.results.artifacts}
    column = text.split(",")[5]
    digits.path("train").write_text(text.replace(column, "brightness", 1))
    with pytest.raises(DataError, match=rf"only .*train\.csv has brightness, only .*{column}"):
        digits.refresh()
    assert before == {name: digits.version(name).data_version for name in digits.results.artifacts}
    digits.path("train").write_text(text)
    assert computed(digits.refresh()) == set()


def test_a_changed_test_row_costs_its_row_of_chunks(digits):
    rows = digits.rows("test")
    rows[7] = another_image(rows[7])
    digits.write("test", rows)
    done = refresh(digits)
    (row,) = slots(digits, "test", [rows[7][0]]) // TEST
    for chunks in done.new["direct/influence_factors"].values():
        assert {index[0] for index in chunks} == {row}
    for name in PAIRS:
        wanted = {
            array: {index for index in np.ndindex(variable.grid) if index[0] == row}
            for array, variable in digits.version(name).variables.items()
        }
        assert done.new[name] == wanted
    assert done.updates["gradients"].is_current


def test_test_rows_of_a_second_file_cost_their_own_chunks(digits):
    rows = digits.rows("test")
    new = [[f"test-late-{k}", *another_image(row)[1:]] for k, row in enumerate(rows[:20])]
    digits.write_settings(data=digits.settings["data"] | {"test": "data/digits/test*.csv"})
    assert computed(digits.refresh()) == set(), "the same rows under a pattern"
    shutil.copy(digits.path("test"), digits.path("test-late"))
    digits.write("test-late", new)
    done = refresh(digits)
    last = set((slots(digits, "test", (row[0] for row in new)) // TEST).tolist())
    assert last == {len(rows) // TEST}
    for name in ("direct/influence_factors", *PAIRS):
        for chunks in done.new[name].values():
            assert {index[0] for index in chunks} == last, name
    assert done.updates["gradients"].is_current
    assert digits.results["direct"].sizes["test"] == len(rows) + 20
    digits.path("test-late").unlink()
    assert refresh(digits).updates["dataset"].info["test"]["removed"] == 20


def test_another_damping_costs_what_follows_from_it(digits):
    digits.write_settings(damping=0.02)
    done = refresh(digits)
    current = {name for name, update in done.updates.items() if update.is_current}
    assert current == {"dataset", "model", "gradients", "hessian"}
    assert_as_from_nothing(digits)


def test_chunks_of_another_size_hold_the_same_numbers(digits):
    before = digits.results["direct"].influences.load()
    chunks = {"test": 32, "train": 256}
    digits.write_settings(store={"path": "data/store", "chunks": chunks})
    updates = digits.refresh()
    if digits.thorough:
        assert_as_from_nothing(digits)
    variables = digits.version("direct/influences").variables
    assert variables["influences"].chunks == (32, 256)
    assert digits.version("gradients").variables["1.activations"].chunks[0] == 256
    assert updates["hessian"].is_current
    assert_close(digits.results["direct"].influences, before.values, 1e-6)
