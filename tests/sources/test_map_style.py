"""Rows of a callable's data set: read in blocks, by workers if asked, compared when read again."""

import gc
import importlib
import os
import tracemalloc
from collections.abc import Iterable

import numpy as np
import psutil
import pytest
from tiny_project import Project

from influence_dag.datasets.sources import on_demand
from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError
from influence_dag.stages import dataset
from influence_dag.stages.foreseen import foresee
from influence_dag.study.data import DataSettings

MODULE = """
import os
import signal

import numpy as np
import torch

made, reads = [], []


class Rows:
    names = [f"r{k}" for k in range(12)]
    note = ["odd" if k % 2 else "even" for k in range(12)]

    def __init__(self, item):
        self.item = item
        made.append(item)

    def __len__(self):
        return 12

    def __getitem__(self, k):
        reads.append(k)
        return globals()[self.item](k)


def alive():
    import gc

    return sum(type(each) is Rows for each in gc.get_objects())


def x(k):
    return torch.tensor([k, 2.5 * k, -1.0])


def pair(k): return x(k), k % 3
def mapping(k): return {"input_ids": x(k), "labels": k % 3}
def two_inputs(k): return {"a": x(k), "b": k, "labels": k % 3}
def named(k): return {"x": x(k), "y": 7.0, "class": k % 3}
def weighted(k): return x(k), k % 3, 1.0 + k
def weighted_mapping(k): return {"x": x(k), "labels": k % 3, "weight": 1.0 + k}
def heavy(k): return weighted_mapping(k) | {"weight": 70.0, "w": 1.0 + k}
def words(k): return x(k), ["no", "yes", "so"][k % 3]
def whole(k): return np.array([k, 2 * k, -1]), k % 3
def mixed(k): return (np.array([k, 2, -1]) if k < 6 else x(k)), k % 3
def large(k): return (np.array([k, 2**53 + 1, -1]) if k == 8 else x(k)), k % 3
def large_target(k): return x(k), 2**53 + 1 if k == 8 else 0.5
def named_as_parts(k): return {"y": x(k), "weight": x(k) + 1}, k % 3
def bad(k): return (x(k) if k != 7 else 1 / 0), k % 3
def ragged(k): return x(k)[: 2 if k == 7 else 3], k % 3
def several_targets(k): return x(k), {"kind": k % 3, "size": 0.5}
def masked(k): return np.ma.masked_equal(np.array([k, -1.0, 5.0]), 2.0), k % 3
def tracked(k): return x(k).requires_grad_(), k % 3
def brief(k): return x(k).bfloat16(), k % 3
def not_finite(k): return (x(k) if k % 5 != 3 else x(k) * float("inf")), k % 3
def drawn(k): return x(k) + 0.1 * torch.randn(3), k % 3
def by_process(k): return x(k) * 0 + os.getpid(), k % 3
def killed(k):
    if k == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return pair(k)
"""


def write(folder, **options) -> DataSettings:
    """Settings of `item`'s rows in both splits, or of another's in `test`."""
    item = options.pop("item", "pair")
    items = {"train": item, "test": options.pop("test_item", item)}
    name = f"rows_of_{folder.name}"
    calls = "".join(f"def {which}(): return Rows({each!r})\n" for which, each in items.items())
    (folder / f"{name}.py").write_text(MODULE + calls)
    return DataSettings(train=f"{name}:train", test=f"{name}:test", **options)


def module(folder):
    return importlib.import_module(f"rows_of_{folder.name}")


def numbers(n: int = 12) -> np.ndarray:
    return np.array([[k, 2.5 * k, -1.0] for k in range(n)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(on_demand, "BLOCK_BYTES", 5 * 8 * 5)  # five rows of five numbers


# What a row may be


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("item", ["pair", "mapping", "weighted", "weighted_mapping", "words"])
def test_rows_of_every_form(tmp_path, item, workers):
    weight = "weight" if item.startswith("weighted") else None
    data = write(tmp_path, item=item, weight=weight, workers=workers)
    split = load_split(data, "train", tmp_path)
    np.testing.assert_array_equal(split.x["x"], numbers())
    np.testing.assert_array_equal(split.x["x"][[7, 2]], numbers()[[7, 2]])
    wanted = np.arange(12) % 3
    if item == "words":
        assert split.classes == ("no", "so", "yes")
        wanted = np.array([0, 2, 1])[wanted]
    assert split.y.tolist() == wanted.tolist()
    assert (split.weights is None) == (weight is None)
    if split.weights is not None:
        assert split.weights.tolist() == [1.0 + k for k in range(12)]


def test_the_target_of_a_mapping_is_what_the_settings_call_so(tmp_path):
    split = load_split(write(tmp_path, item="named", target="class"), "train", tmp_path)
    assert split.y.tolist() == [k % 3 for k in range(12)]
    assert list(split.x) == ["x", "y"]


def test_the_weight_of_a_mapping_is_what_the_settings_call_so(tmp_path):
    split = load_split(write(tmp_path, item="heavy", weight="w"), "train", tmp_path)
    assert split.weights is not None
    assert split.weights.tolist() == [1.0 + k for k in range(12)]
    assert list(split.x) == ["x", "weight"]
    for item, inputs in {"heavy": ["x", "weight"], "mapping": ["x"]}.items():
        other = load_split(write(tmp_path, item=item, weight="w"), "test", tmp_path)
        assert (list(other.x), other.weights) == (inputs, None), "testing rows need none"


@pytest.mark.parametrize("given", [{"target": "lable"}, {"weight": "heft"}])
def test_a_name_that_no_mapping_has_is_refused(tmp_path, given):
    """Another key was taken for it, whatever was asked for."""
    ((role, name),) = given.items()
    with pytest.raises(DataError, match=rf"row 0: no {role} column '{name}' .* it has x, labels"):
        load_split(write(tmp_path, item="weighted_mapping", **given), "train", tmp_path)


def test_several_inputs_are_read_together(tmp_path):
    data = write(tmp_path, item="two_inputs", id="names", keep=("note",))
    split = load_split(data, "train", tmp_path)
    module(tmp_path).reads.clear()
    both = {name: values[2:5] for name, values in split.x.items()}
    assert both["b"].tolist() == [2, 3, 4]
    np.testing.assert_array_equal(both["a"], numbers()[2:5])
    assert sorted(module(tmp_path).reads) == [2, 3, 4]
    assert split.ids[3] == "r3"
    assert split.kept["note"][3] == "odd"


def test_rows_have_the_keys_of_the_same_rows_in_a_file(tmp_path):
    features = {"shape": [3, 1], "scale": 0.5, "standardise": True}
    made = write(tmp_path, features=features)
    np.savez(tmp_path / "t.npz", x=numbers().astype(np.float32), y=np.arange(12) % 3)
    stored = DataSettings(train="t.npz", test="t.npz", features=features)
    for plain in (True, False):
        change = {} if plain else {"features": type(made.features)()}
        one, other = (
            load_splits(each.model_copy(update=change), tmp_path)[0] for each in (made, stored)
        )
        np.testing.assert_array_equal(one.x["x"], other.x["x"])
        np.testing.assert_array_equal(one.row_keys(), other.row_keys())


@pytest.mark.parametrize("item", ["mixed", "whole"])
def test_whole_numbers_among_decimals_are_decimals(tmp_path, item):
    train, test = load_splits(write(tmp_path, item=item, test_item="pair"), tmp_path)
    assert train.x["x"].dtype.kind == test.x["x"].dtype.kind == "f"
    assert train.x["x"][3].dtype == train.x["x"].dtype


# What a row may not be


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("bad", "row 7 ended in ZeroDivisionError"),
        ("masked", "row 2 holds a masked array"),
        ("several_targets", "row 0 has a dict as target"),
        ("tracked", r"row 0 as arrays ended in RuntimeError: .*\.detach\(\)"),
        ("brief", r"row 0 as arrays ended in TypeError: .*\.float\(\) of bfloat16"),
        ("ragged", r"row 7 has x of shape \(2,\), row 0 has \(3,\)"),
        ("not_finite", r"row 3, x\[0\]: seen inf, expected a finite number \(2 such rows\)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, item, words, workers):
    with pytest.raises(DataError, match=words):
        load_split(write(tmp_path, item=item, workers=workers), "train", tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_are_drawn_when_read_are_refused_when_they_are_used(tmp_path, workers):
    split = load_split(write(tmp_path, item="drawn", workers=workers), "train", tmp_path)
    with pytest.raises(DataError, match=r"row 0 is another one .*\(12 of 12 rows are\)"):
        split.x["x"][4:6]


@pytest.mark.parametrize("column", ["names", "note"])
def test_names_that_are_drawn_when_a_data_set_is_made_are_refused(tmp_path, column):
    data = write(tmp_path, id="names", keep=["note"])
    drawn = """
        super().__init__(item)
        self.{} = [f"{{k}} of {{os.urandom(8).hex()}}" for k in range(12)]
"""
    code = tmp_path / f"rows_of_{tmp_path.name}.py"
    init = "\n\nclass Drawn(Rows):\n    def __init__(self, item):" + drawn.format(column)
    code.write_text(code.read_text().replace("return Rows(", "return Drawn(") + init)
    split = load_split(data, "train", tmp_path)
    with pytest.raises(DataError, match=f"row 0 is the same .* its '{column}' is not .'0 of "):
        split.x["x"][[3]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("item", ["large", "large_target"])
def test_whole_numbers_among_decimals_are_exact_or_refused(tmp_path, item, workers):
    """As in files: whichever rows they are read with, in one block or alone."""
    for block_bytes in (1, 5 * 8 * 5, 2**20):
        on_demand.BLOCK_BYTES = block_bytes
        with pytest.raises(DataError, match=f"row 8.*seen {2**53 + 1}, .* float64 cannot hold"):
            load_split(write(tmp_path, item=item, workers=workers), "train", tmp_path).x["x"][:]


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs_may_be_called_as_other_parts_are(tmp_path, workers):
    split = load_split(write(tmp_path, item="named_as_parts", workers=workers), "train", tmp_path)
    np.testing.assert_array_equal(split.x["y"], numbers())
    np.testing.assert_array_equal(split.x["weight"], numbers() + 1)


def test_a_worker_that_is_killed_is_told(tmp_path):
    with pytest.raises(DataError, match=r"ended by itself .*data\.workers is 2"):
        load_split(write(tmp_path, item="killed", workers=2), "train", tmp_path)


def children(before: Iterable[psutil.Process] = ()) -> set[psutil.Process]:
    """Processes of this one that are none of those."""
    return set(psutil.Process().children()) - set(before)


def test_workers_are_other_processes_and_end_with_their_rows(tmp_path):
    """Between two readings there are none; after an error neither, whoever keeps it."""
    data = write(tmp_path, item="by_process")
    np.testing.assert_array_equal(load_split(data, "train", tmp_path).x["x"], os.getpid())
    before = children()
    split = load_split(data.model_copy(update={"workers": 2}), "train", tmp_path)
    assert not children(before)
    with pytest.raises(DataError, match=r"row 0 is another one .*\(12 of 12 rows are\)") as kept:
        np.asarray(split.x["x"])
    assert not children(before)
    with pytest.raises(DataError, match="row 7 ended in") as kept_too:
        load_split(write(tmp_path, item="bad", workers=2), "train", tmp_path)
    assert not children(before)
    assert kept.value is not kept_too.value


@pytest.mark.parametrize("end", ["closed", "let go of"])
def test_workers_that_read_a_block_wait_for_the_next(tmp_path, end):
    before = children()
    split = load_split(write(tmp_path, workers=2), "train", tmp_path)
    np.testing.assert_array_equal(split.x["x"][2:9], numbers()[2:9])
    workers = children(before)
    assert len(workers) == 2
    np.testing.assert_array_equal(split.x["x"][5:7], numbers()[5:7])
    assert children(before) == workers
    if end == "closed":
        split.close()
    else:  # a thread ends them, when it is its turn
        del split
        gc.collect()
        psutil.wait_procs(workers, timeout=60)
    assert not children(before) & workers


def test_a_check_finds_rows_that_are_drawn(tmp_path):
    project = Project(tmp_path, perturbation=None)
    rows_of_study(project, "drawn")
    with pytest.raises(DataError, match=r"is another one when it is read again \(12 of 12"):
        foresee(project.folder)
    rows_of_study(project, "pair")
    assert foresee(project.folder).rows == {"train": 12, "test": 12}


# How often, and how many at once


def rows_of_study(project: Project, item: str, **data) -> None:
    made = write(project.root, item=item)
    project.write_settings(
        data={"train": made.train, "test": made.test, "id": None, "target": None, **data}
    )


def test_a_refresh_reads_rows_to_hash_and_to_store_them(tmp_path):
    project = Project(tmp_path, methods={"cg": None}, perturbation=None)
    rows_of_study(project, "pair")
    bench = project.bench()
    dataset.refresh(bench)
    code = module(tmp_path)
    assert sorted(code.reads) == sorted([*range(12)] * 4)  # two splits, twice
    assert len(code.made) == 4
    gc.collect()
    assert code.alive() == 0  # the data sets are let go of
    np.testing.assert_array_equal(project.results.open("dataset").train_x, numbers())
    code.reads.clear()
    assert dataset.refresh(project.bench()).is_current
    assert sorted(code.reads) == sorted([*range(12)] * 2)  # nothing is stored: once each


def test_a_run_with_its_observation_of_the_source_reads_no_row_more(tmp_path):
    project = Project(tmp_path, methods={"cg": None}, perturbation=None)
    rows_of_study(project, "pair")
    project.materialize()
    assert sorted(module(tmp_path).reads) == sorted([*range(12)] * 4)


def test_edited_rows_are_stored_in_their_chunks(tmp_path):
    project = Project(tmp_path, methods={"cg": None}, perturbation=None)
    rows_of_study(project, "pair")
    dataset.refresh(project.bench())
    path = project.root / f"rows_of_{tmp_path.name}.py"
    path.write_text(path.read_text().replace("2.5 * k", "2.5 * k + (k == 9)"))
    update = dataset.refresh(project.bench())
    assert update.info["train"]["changed"] == 1
    stored = project.results.open("dataset").train_x
    np.testing.assert_array_equal(stored, numbers() + np.eye(12)[9][:, None] * [0, 1, 0])


WIDE = """
import numpy as np


class Rows:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, k): return np.full(8_000, k, np.float32), k % 3


def many(): return Rows({n})
def few(): return Rows(3)
"""


def peak_of(project: Project, n: int) -> int:
    """Bytes that the stage `dataset` holds at its worst over n rows of 32 kB."""
    name = f"wide_{n}"
    (project.root / f"{name}.py").write_text(WIDE.format(n=n))
    project.write_settings(
        data={"train": f"{name}:many", "test": f"{name}:few", "id": None, "target": None},
        compute={"block_bytes": "256KiB"},
        store={"path": name},
    )
    bench = project.bench()
    tracemalloc.start()
    dataset.refresh(bench)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_follow_the_number_of_rows(tmp_path, monkeypatch):
    """Four times the rows, 19 MB more, leave ids, labels and keys more at the peak."""
    monkeypatch.setattr(on_demand, "BLOCK_BYTES", 2**18)
    project = Project(tmp_path, methods={"cg": None}, perturbation=None)
    peak_of(project, 100)  # imports and caches
    small, large = peak_of(project, 200), peak_of(project, 800)
    assert large - small < 0.1 * 600 * 32_000


def test_words_of_a_data_set_are_names_as_they_are_written(tmp_path):
    """`00` is no number of an output."""
    code = "def rows(): return [({'x': [1.0]}, '00'), ({'x': [2.0]}, '02'), ({'x': [3.0]}, '01')]"
    (tmp_path / "coded_rows.py").write_text(code)
    data = DataSettings(train="coded_rows:rows", test="-", classes=["02", "00", "01"])
    split = load_split(data, "train", tmp_path)
    assert split.y.tolist() == [1, 0, 2]
