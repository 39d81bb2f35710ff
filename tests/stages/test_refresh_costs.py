"""What an edit reads and writes, counted: blocks, and bytes of files that were not there before.

`benchmarks/bench_refresh.py` has the same at 250 × 50,000, with seconds.
"""

import numpy as np
import pytest
from tiny_answers import PINNED, computed, remove
from tiny_project import Project, make_rows

N_TEST, N_TRAIN, CHUNK = 256, 8_192, 128


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Project:
    project = Project(
        tmp_path_factory.mktemp("costs"),
        methods={"cg": None},
        perturbation=None,
        compute={"dtype": "float32"},
        store={"chunks": {"test": N_TEST, "train": CHUNK}},
        damping=0.5,
    )
    project.write_settings(**PINNED)
    project.write("train", make_rows("train", N_TRAIN))
    project.write("test", make_rows("test", N_TEST))
    project.refresh()
    return project


def files(project: Project) -> dict[int, int]:
    found = [path.stat() for path in project.store.rglob("*") if path.is_file()]
    return {status.st_ino: status.st_size for status in found}


def test_an_edit_in_three_chunks_of_64_costs_three_of_each(study):
    full = files(study)
    assert computed(study.refresh()) == set()
    assert files(study) == full, "nothing changed, nothing was written"
    rows = [list(row) for row in study.rows["train"]]
    for position in (5, 7, 20 * CHUNK, 40 * CHUNK + 3):
        rows[position][1] += 0.5
    study.write("train", rows)
    updates = study.refresh()
    blocks = {name: update.blocks_computed for name, update in updates.items()}
    assert {name: count for name, count in blocks.items() if count} == {
        "dataset": 2 * 3,  # features, labels
        "gradients": 4 * 3,  # input and output gradient of two layers
        "direct/influences": 3,
        # What is kept by blocks of training rows; of test rows; what the model makes of rows.
        "direct/summary": 5 * 3 + 6 + 2 * 3,
        "report": 1,
    }
    new = sum(size for file, size in files(study).items() if file not in full)
    assert new <= 0.1 * sum(full.values())


def test_a_merged_summary_is_the_one_from_nothing_to_the_last_bit(study):
    study.edit("train", 9, width=3.0)
    study.edit("test", 3, width=3.0)
    study.refresh()
    merged = study.results.store.version("direct/summary").open().load()
    remove(study.store / "direct/summary")
    study.refresh()
    anew = study.results.store.version("direct/summary").open().load()
    for name, values in anew.variables.items():
        np.testing.assert_array_equal(merged[name], values, err_msg=str(name))
