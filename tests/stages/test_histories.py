"""Any sequence of edits, settings, interruptions and refreshes ends in a from-scratch run's arrays.

θ is a checkpoint, so that both runs describe the same model whatever the rows are.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from test_chain import remove
from tiny_project import Project

import influence_dag as idag
from influence_dag.store import Draft

SETTINGS = {
    "damping": 1.0,  # far from a minimum H alone is indefinite
    "model": {"fit": None, "checkpoint": "theta.safetensors"},
    "methods": {"direct": {}, "cg": {"rtol": 1e-12, "rank": 8}},
}
FEWEST = 6  # rows left in a file
PER_PAIR = ("direct/influences", "cg/influences", "direct/perturbation_influences")
PER_ROW = ("direct/influence_factors", "cg/influence_factors", "direct/summary", "gradients")

splits = st.sampled_from(["train", "train", "test"])
values = st.integers(-8, 8).map(lambda value: value / 4)
labels = st.integers(0, 2)
places = st.integers(0, 100)


class InterruptedRunError(Exception):
    """What ends a refresh in the middle of its writing."""


class History(RuleBasedStateMachine):
    def __init__(self, finished: Project):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.project = finished.copy(self.folder / "project")
        shutil.copy(
            self.project.store / "model/current/model.safetensors",
            self.project.root / "theta.safetensors",
        )
        self.project.write_settings(**SETTINGS)
        self.added = 0
        self.pending = True

    def teardown(self):
        shutil.rmtree(self.folder)

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

    @precondition(lambda self: self.pending)
    @rule(writes=st.integers(0, 60))
    def a_refresh_is_interrupted(self, writes):
        write, left = Draft.write, writes

        def until_crash(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise InterruptedRunError
            write(*arguments, **options)

        Draft.write = until_crash
        try:
            self.project.refresh()
        except InterruptedRunError:
            pass
        finally:
            Draft.write = write

    @precondition(lambda self: self.pending)
    @rule()
    def a_refresh_equals_a_run_from_nothing(self):
        self.project.refresh()
        self.pending = False
        scratch = self.project.copy(self.folder / "scratch")
        try:
            remove(scratch.store)
            scratch.refresh()
            self.compare_with(scratch)
        finally:
            shutil.rmtree(scratch.root)
        self.check_versions()

    def compare_with(self, scratch: Project) -> None:
        for name in (*PER_PAIR, *PER_ROW):
            stored, wanted = (each.results.open(name).load() for each in (self.project, scratch))
            rows = {split: wanted[split] for split in ("test", "train") if split in wanted.dims}
            assert {split: stored.sizes[split] for split in rows} == {
                split: len(ids) for split, ids in rows.items()
            }
            for variable, array in wanted.data_vars.items():
                if variable in ("top_train", "bottom_train"):
                    continue  # slots: another numbering
                np.testing.assert_allclose(
                    stored[variable].sel({dim: rows[dim] for dim in array.dims if dim in rows}),
                    array,
                    rtol=1e-8,
                    atol=1e-10,
                    err_msg=f"{name}",
                )

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


def run(finished: Project, *, examples: int, steps: int) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(lambda: History(finished), settings=chosen)


def test_a_few_histories(finished_project):
    run(finished_project, examples=2, steps=10)


@pytest.mark.campaign
def test_many_histories(finished_project):
    run(finished_project, examples=200, steps=40)
