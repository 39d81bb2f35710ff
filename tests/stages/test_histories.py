"""Any sequence of edits, settings, crashes, restores and refreshes ends in a fresh run's arrays.

θ is a checkpoint, so that both runs describe the same model whatever the rows are. While the
curvature is pinned, the run from scratch is given the stored one and the rows that it saw.
"""

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from safetensors.torch import load_file, save_file
from tiny_project import MODEL, Project

import influence_dag as idag
from influence_dag.store.drafts import StoredDraft

SETTINGS = {
    "damping": 1.0,  # far from a minimum H alone is indefinite
    "model": {"fit": None, "checkpoint": "theta.safetensors"},
    "methods": {"direct": {}, "cg": {"rtol": 1e-12, "rank": 8}},
}
FEWEST = 6  # rows left in a file
FITTED = ("hessian", "direct/curvature", "cg/curvature")
SLOTS = ("top_train", "bottom_train", "blocks")  # another numbering in another store
SIGNS = ("eigenvectors",)  # of either sign

splits = st.sampled_from(["train", "train", "test"])
values = st.integers(-8, 8).map(lambda value: value / 4)
labels = st.integers(0, 2)
places = st.integers(0, 100)


class InterruptedRunError(Exception):
    """What ends a refresh in the middle of its writing."""


class History(RuleBasedStateMachine):
    def __init__(self, finished: Project, done: Counter[str]):
        super().__init__()
        self.done = done
        self.done["histories"] += 1
        self.folder = Path(tempfile.mkdtemp())
        self.project = finished.copy(self.folder / "project")
        for name in ("theta.safetensors", "theta-0.safetensors"):
            stored = self.project.store / "model/current/model.safetensors"
            shutil.copy(stored, self.project.root / name)
        self.project.write_settings(**SETTINGS)
        self.added = 0
        self.pending = True
        self.curvature = "on_change"
        self.rows_of: dict[int, dict[str, dict[str, list]]] = {}  # dataset version → its rows
        self.backup, self.rows_then = self.folder / "backup", {}

    def teardown(self):
        shutil.rmtree(self.folder)

    @invariant()
    def a_step_is_counted(self):
        self.done["steps"] += 1

    def write(self, split: str, rows: list[list]) -> None:
        self.project.write(split, rows)
        self.pending = True

    @rule(split=splits, x=st.tuples(values, values, values), label=labels, at=places)
    def a_row_is_added(self, split, x, label, at):
        self.added += 1
        rows = list(self.project.rows[split])
        rows.insert(at % (len(rows) + 1), [f"{split}-new-{self.added}", *x, label])
        self.write(split, rows)

    @rule(split=splits, at=places, value=values, label=labels)
    def a_row_is_changed(self, split, at, value, label):
        self.project.edit(split, at % len(self.project.rows[split]), width=value, label=label)
        self.pending = True

    @rule(split=splits, at=places, count=st.integers(1, 12))
    def rows_are_removed(self, split, at, count):
        rows = list(self.project.rows[split])
        start = at % len(rows)
        del rows[start : start + min(count, len(rows) - FEWEST)]
        self.write(split, rows)

    @rule(split=splits, random=st.randoms(use_true_random=False))
    def rows_are_put_in_another_order(self, split, random):
        rows = list(self.project.rows[split])
        random.shuffle(rows)
        self.write(split, rows)

    @rule(damping=st.sampled_from([1.0, 2.0]))
    def the_damping_is(self, damping):
        self.project.write_settings(damping=damping)
        self.pending = True

    @rule(chunks=st.sampled_from([{"test": 4, "train": 8}, {"test": 3, "train": 16}]))
    def the_chunks_are(self, chunks):
        self.project.write_settings(store={"chunks": chunks})
        self.pending = True

    @rule(policy=st.sampled_from(["on_change", "pinned"]))
    def the_curvature_is_refreshed(self, policy):
        self.curvature = policy
        self.project.write_settings(curvature={"refresh": policy}, model={"refit": policy})
        self.pending = True

    @rule(scale=st.sampled_from([1.0, 0.8]))
    def the_checkpoint_is_replaced(self, scale):
        stored = load_file(self.project.root / "theta-0.safetensors")
        save_file(
            {name: scale * value for name, value in stored.items()},
            self.project.root / "theta.safetensors",
        )
        self.pending = True

    @rule(activation=st.sampled_from(["Tanh", "Sigmoid"]))
    def the_code_is(self, activation):
        self.project.write_model(MODEL.replace("Tanh", activation))
        self.pending = True

    @rule()
    def the_store_is_backed_up(self):
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(self.project.store, self.backup, symlinks=True)
        self.rows_then = dict(self.rows_of)

    @precondition(lambda self: self.backup.exists())
    @rule()
    def the_backup_is_restored(self):
        shutil.rmtree(self.project.store)
        shutil.copytree(self.backup, self.project.store, symlinks=True)
        self.rows_of = dict(self.rows_then)
        self.pending = True

    @precondition(lambda self: self.pending)
    @rule(writes=st.integers(0, 60))
    def a_refresh_is_interrupted(self, writes):
        write, left = StoredDraft.write, writes

        def until_crash(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise InterruptedRunError
            write(*arguments, **options)

        StoredDraft.write = until_crash
        try:
            self.project.refresh()
        except InterruptedRunError:
            pass
        finally:
            StoredDraft.write = write

    @precondition(lambda self: self.pending)
    @rule()
    def a_refresh_equals_a_run_from_nothing(self):
        self.project.refresh()
        self.pending = False
        kept = ("dataset", *FITTED) if self.curvature == "pinned" else ()
        scratch = self.project.copy(self.folder / "scratch", artifacts=kept)
        try:
            scratch.refresh()
            with dask.config.set(scheduler="synchronous"):
                self.compare_with(scratch)
        finally:
            shutil.rmtree(scratch.root)
        self.check_versions()
        self.check_differences()
        self.done["comparisons"] += 1

    def compare_with(self, scratch: Project) -> None:
        assert self.project.results.artifacts == scratch.results.artifacts
        for name in scratch.results.artifacts:
            stored, wanted = (each.results.open(name).load() for each in (self.project, scratch))
            rows = {split: wanted[split] for split in ("test", "train") if split in wanted.dims}
            assert {split: stored.sizes[split] for split in rows} == {
                split: len(ids) for split, ids in rows.items()
            }
            if "blocks" in stored:
                merged = stored.blocks.isel(entry=0).sum("train_block")
                np.testing.assert_allclose(merged, stored.test_sum, rtol=1e-12, atol=1e-12)
            for variable in sorted({*wanted.data_vars} - {*SLOTS}):
                seen, array = stored[variable], wanted[variable]
                seen = seen.sel({dim: rows[dim] for dim in array.dims if dim in rows})
                if variable in SIGNS:
                    seen, array = abs(seen), abs(array)
                np.testing.assert_allclose(seen, array, rtol=1e-7, atol=1e-9, err_msg=name)

    def check_differences(self) -> None:
        """Two kept versions of the dataset differ by the rows that the files differed by."""
        results = self.project.results
        numbers = [version.number for version in results.versions("dataset")]
        self.rows_of[numbers[-1]] = {
            split: {row[0]: row[1:] for row in rows} for split, rows in self.project.rows.items()
        }
        before = [number for number in numbers[:-1] if number in self.rows_of]
        if not before:
            return
        found = results.diff("dataset", before[0])
        for split in ("train", "test"):
            old, new = self.rows_of[before[0]][split], self.rows_of[numbers[-1]][split]
            both = old.keys() & new.keys()
            assert set(found.added[split]) == new.keys() - old.keys()
            assert set(found.removed[split]) == old.keys() - new.keys()
            assert set(found.changed[split]) == {name for name in both if old[name] != new[name]}

    def check_versions(self) -> None:
        assert idag.status(self.project.folder).is_current
        store = self.project.results.store
        for name in store.names():
            numbers = [version.number for version in store.versions(name)]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == store.version(name).number
            assert not store.version(name).verify()
        raw = store.version("direct/influences").open().load()
        present = raw.test_valid & raw.train_valid
        assert (raw.influences.notnull() == present).all()
        for split in ("test", "train"):
            ids = raw[split].values[raw[f"{split}_valid"].values]
            assert sorted(ids) == sorted(row[0] for row in self.project.rows[split])


def run(finished: Project, *, examples: int, steps: int, first: int = 0) -> Counter[str]:
    """What was done: histories, their steps, and comparisons with a run from nothing."""
    done: Counter[str] = Counter()
    machine = seed(first)(lambda: History(finished, done))
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(machine, settings=chosen)
    done["steps"] -= done["histories"]  # what holds is looked at before the first one too
    return done


def test_a_few_histories(finished_project):
    assert run(finished_project, examples=2, steps=8)["histories"] >= 2


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(1, 9))
def test_many_histories(finished_project, first, capsys):
    """About 7 minutes each where the folder of temporary files is in memory (`TMPDIR=/dev/shm`)."""
    done = run(finished_project, examples=20, steps=40, first=first)
    with capsys.disabled():
        sys.stdout.write(f" {dict(done)} ")
