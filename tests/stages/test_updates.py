"""What a change of rows or files costs, and that the answer is the one computed from nothing."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import reference
import study_faults
import torch
from tiny_answers import (
    ALL,
    PINNED,
    assert_close,
    computed,
    expected,
    in_file_order,
    remove,
    stored_module,
)
from tiny_project import COLUMNS, Project
from torch.nn import functional as F

from influence_dag.errors import DataError
from influence_dag.stages.graph import artifacts
from influence_dag.stages.reading import load_rows
from influence_dag.stages.updates import Update
from influence_dag.store import Version

DAMPING = 0.5  # at a pinned θ that an edit moves off its minimum, H alone may be indefinite
MODEL_PINNED = {"model": {"refit": "pinned"}, "damping": DAMPING}
LAST = ("influences", "summary")
NEW = [["train-new", 0.1, -0.2, 0.3, 1], ["train-newer", 1.1, 0.2, -0.3, 2]]


@pytest.fixture(scope="module")
def finished_pinned(finished_project, tmp_path_factory):
    project = finished_project.copy(tmp_path_factory.mktemp("pinned"))
    project.write_settings(**MODEL_PINNED)
    project.refresh()
    return project


@pytest.fixture
def pinned(finished_pinned, tmp_path) -> Project:
    """A finished study with θ pinned and the curvature following the data, to be edited."""
    return finished_pinned.copy(tmp_path)


def edit(project: Project) -> None:
    project.edit("train", 11, height=1.5, label=2)


def add(project: Project) -> None:
    project.write("train", [NEW[0], *project.rows["train"], NEW[1]])


def take_away(project: Project) -> None:
    project.write("train", project.rows["train"][3:])


def all_at_once(project: Project) -> None:
    for change in (edit, add, take_away):
        change(project)


def refreshed_until(project: Project, last: str) -> Update:
    bench = project.bench()
    for node in artifacts(bench.study):
        update = node.refresh(bench)
        if node.name == last:
            return update
    raise AssertionError(f"there is no {last}")


@pytest.mark.parametrize(
    ("change", "touched"), [(edit, 2), (add, 2), (take_away, 3), (all_at_once, 5)]
)
def test_the_hessian_follows_the_rows_that_differ(pinned, change, touched):
    change(pinned)
    updates = pinned.refresh()
    hessian = updates["hessian"]
    assert hessian.info["rows_differentiated"] == touched
    assert (hessian.blocks_computed > 0, hessian.blocks_reused) == (True, 0), "made at once"
    rebuilt = reference.hessian(stored_module(pinned), F.cross_entropy, *pinned.tensors("train"))
    assert_close(pinned.results.open("hessian").hessian, rebuilt.numpy(), 1e-12)
    for method in ("direct", "cg"):
        assert_close(in_file_order(pinned, method), expected(pinned, "influences", DAMPING))


def test_differences_of_differences_do_not_drift(pinned):
    for height in np.linspace(-2, 2, 8):
        pinned.edit("train", 11, height=float(height))
        assert refreshed_until(pinned, "hessian").info["rows_differentiated"] == 2
    rebuilt = reference.hessian(stored_module(pinned), F.cross_entropy, *pinned.tensors("train"))
    assert_close(pinned.results.open("hessian").hessian, rebuilt.numpy(), 1e-12)


@pytest.mark.parametrize(
    ("fisher", "change", "touched"),
    [
        ("exact", all_at_once, 5),
        pytest.param("exact", edit, 2, marks=pytest.mark.campaign),
        ("empirical", take_away, 3),
        ("sampled", edit, 40),  # which labels are drawn depends on all rows
    ],
)
def test_kronecker_sums_follow_the_rows_that_differ(pinned, tmp_path, fisher, change, touched):
    both = ("kfac", "ekfac")
    methods = {"direct": None, "cg": None} | {method: {"fisher": fisher} for method in both}
    pinned.write_settings(methods=methods, perturbation=None)

    def summed(project: Project) -> list[int]:
        updates = project.refresh()
        return [updates[f"{method}/curvature"].info["rows_summed"] for method in both]

    assert summed(pinned) == [40, 40]
    change(pinned)
    assert summed(pinned) == [touched, touched]
    scratch = pinned.copy(tmp_path / "scratch")
    for method in both:
        scratch.store.joinpath(f"{method}/curvature").rename(tmp_path / f"removed {method}")
    assert summed(scratch) == [len(pinned.rows["train"])] * 2
    for method in both:
        wanted = scratch.results[method].influences.values
        assert_close(pinned.results[method].influences, wanted, 1e-10)


def test_all_rows_are_summed_when_the_old_ones_are_gone(pinned):
    edit(pinned)
    bench = pinned.bench()
    next(artifacts(bench.study)).refresh(bench)
    remove(pinned.store / "dataset/versions/000001")
    (pinned.store / "dataset/versions/000001").rmdir()
    assert pinned.refresh()["hessian"].info["rows_differentiated"] == 40
    assert_close(in_file_order(pinned), expected(pinned, "influences", DAMPING))


def test_rows_that_a_stored_curvature_has_seen_are_kept_as_long_as_it_is(pinned):
    pinned.write_settings(store={"keep_versions": 1}, curvature={"refresh": "pinned"})
    for depth in (0.1, 0.2, 0.3):
        pinned.edit("train", 11, depth=depth)
        pinned.refresh()
    numbers = [version.number for version in pinned.results.versions("dataset")]
    assert numbers == [1, 4]
    pinned.edit("test", 5, width=-1.0)
    pinned.refresh()
    direct, cg = (pinned.results.influence_factors(method).values for method in ("direct", "cg"))
    assert_close(cg, direct, 1e-8)
    pinned.write_settings(curvature={"refresh": "on_change"})
    pinned.edit("train", 11, depth=0.4)
    assert pinned.refresh()["hessian"].info["rows_differentiated"] == 2
    assert_close(in_file_order(pinned), expected(pinned, "influences", DAMPING))


def test_all_rows_are_summed_when_a_difference_would_touch_as_many(pinned):
    for position in range(20):
        pinned.edit("train", position, depth=position / 10)
    assert pinned.refresh()["hessian"].info["rows_differentiated"] == 40
    assert_close(in_file_order(pinned), expected(pinned, "influences", DAMPING))


def test_conjugate_gradients_start_from_the_factors_before(pinned):
    pinned.edit("train", 11, height=pinned.rows["train"][11][1] + 0.01)
    pinned.refresh()
    warm = pinned.results.open("cg/influence_factors").load()
    cold_project = pinned.copy(pinned.root.with_name(f"{pinned.root.name}-cold"))
    remove(cold_project.store / "cg/influence_factors")
    cold_project.refresh()
    cold = cold_project.results.open("cg/influence_factors").load()
    assert float(warm.niter.mean()) < float(cold.niter.mean())
    assert_close(warm.influence_factors, cold.influence_factors.values, 1e-8)


def identities(version: Version) -> set[str]:
    """Everything by which a version is known to others: fingerprints, keys of its chunks."""
    attrs = ("data_version", "fingerprint", "train_rows", "base_key", "layout_fingerprint")
    named = {version.attrs[name] for name in attrs if name in version.attrs}
    keys = (version.keys(name).reshape(-1, 16) for name in version.variables)
    return named | {key.tobytes().hex() for part in keys for key in part}


def test_after_a_refit_everything_is_new_and_nothing_stale_is_anywhere(project):
    """Every test row is edited as well, so that no chunk has a reason to stay."""
    before = {name: project.results.store.version(name) for name in ALL}
    old = set().union(*map(identities, before.values()))
    inodes = {file.stat().st_ino for file in project.store.rglob("*") if file.is_file()}
    for split in ("train", "test"):
        for position in range(0, len(project.rows[split]), 4):
            project.edit(split, position, depth=position / 7, label=2)
    updates = project.refresh()
    for name in ALL:
        version = project.results.store.version(name)
        assert updates[name].blocks_reused == 0, name
        assert updates[name].blocks_computed, name
        assert set(updates[name].reasons) == {"inputs changed"}, name
        assert not identities(version) & old, name
        for text in ("zarr.json", "manifest.json"):
            said = (version.path / text).read_text()
            assert not [identity for identity in old if identity in said], (name, text)
        for variable in version.variables:
            chunks = (version.path / variable).glob("c*")
            assert not {file.stat().st_ino for file in chunks} & inodes
    assert_close(in_file_order(project), expected(project, "influences"))
    about = project.results.store.version("direct/influences").attrs
    assert about["model_data_version"] == project.results.store.version("model").data_version
    assert about["policies"] == {"model.refit": "on_change", "curvature.refresh": "on_change"}


def test_above_a_quarter_of_holes_they_are_closed(pinned):
    rows = pinned.rows["train"]
    pinned.write("train", rows[10:])
    pinned.refresh()
    raw = pinned.results.store.version("direct/perturbation_influences").open()
    assert raw.sizes["train"] == 40
    assert raw.train_valid.values.tolist() == [False] * 10 + [True] * 30
    values = raw.perturbation_influences
    assert values[:, :10].isnull().all()
    assert values[:, 10:].notnull().all()
    assert pinned.results.perturbation("direct").sizes["train"] == 30
    pinned.write("train", rows[11:])
    pinned.refresh()
    for name in ("gradients", "direct/influences", "direct/perturbation_influences"):
        raw = pinned.results.store.version(name).open()
        assert raw.sizes["train"] == 29
        assert raw.train_valid.all()
    assert_close(in_file_order(pinned), expected(pinned, "influences", DAMPING))


SPLITS = {"test": slice(4, 6), "train": slice(8, 16)}


@pytest.mark.parametrize(
    ("split", "gone", "damping"),
    [
        pytest.param("test", SPLITS["test"], [DAMPING, 2 * DAMPING], id="test, two dampings"),
        pytest.param("train", SPLITS["train"], DAMPING, id="train"),
        pytest.param("test", SPLITS["test"], DAMPING, id="test", marks=pytest.mark.campaign),
        pytest.param(
            *("train", SPLITS["train"], [DAMPING, 2 * DAMPING]),
            id="train, two dampings",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_all_rows_of_a_chunk_may_go(pinned, tmp_path_factory, split, gone, damping):
    """Too few holes to close, and nothing else in their chunks."""
    pinned.write_settings(store={"chunks": {"test": 2}}, damping=damping)
    pinned.refresh()
    rows = list(pinned.rows[split])
    del rows[gone]
    pinned.write(split, rows)
    pinned.refresh()
    raw = pinned.results.store.version("direct/influences").open()
    assert raw[f"{split}_valid"].values[gone].tolist() == [False] * (gone.stop - gone.start)
    scratch = pinned.copy(tmp_path_factory.mktemp("scratch"), artifacts=["model"])
    scratch.refresh()
    assert scratch.results["direct"].sizes == pinned.results["direct"].sizes
    for name in (f"{method}/{what}" for method in ("direct", "cg") for what in LAST):
        seen, wanted = (each.results.open(name).load() for each in (pinned, scratch))
        for variable in sorted({*wanted.data_vars} - {"blocks", "top_train", "bottom_train"}):
            np.testing.assert_allclose(seen[variable], wanted[variable], rtol=1e-7, err_msg=name)


# Rows that arrive


@pytest.mark.parametrize("arrives", ["as appended lines", "as a second file"])
def test_new_test_rows_cost_their_own_chunks(project, arrives):
    project.write_settings(data={"test": "test*.csv"}, store={"chunks": {"test": 5}})
    project.refresh()
    new = [[f"test-late-{k}", 0.3 * k, -0.2, 0.1 * k, k % 3] for k in range(4)]
    if arrives == "as appended lines":
        project.write("test", [*project.rows["test"], *new])
    else:
        rows = project.rows["test"]
        project.write("test-late", new)
        project.rows["test"] = rows + new
    updates = project.refresh()
    assert updates["dataset"].info["test"] == {"added": 4, "changed": 0, "removed": 0}
    assert updates["direct/influences"].blocks_computed == 5, "one row of chunks"
    assert updates["direct/perturbation_influences"].blocks_computed == 5
    factors = updates["direct/influence_factors"]
    assert (factors.blocks_computed, factors.blocks_reused) == (2, 4), "factors and residuals"
    assert not computed(updates) & {"model", "gradients", "hessian", "direct/curvature"}
    assert_close(in_file_order(project), expected(project, "influences"))


def test_new_training_rows_at_pinned_policies_cost_their_own_chunks(project):
    project.write_settings(**PINNED, data={"train": ["train.csv", "train-?.csv"]})
    (project.root / "train-0.csv").write_text(",".join(COLUMNS) + "\n")
    project.refresh()
    new = [[f"train-late-{k}", 0.3 * k, -0.2, 0.1 * k, k % 3] for k in range(4)]
    before = project.results["direct"].influences.load()
    project.write("train", [*project.rows["train"], *new[:2]])
    project.write("train-1", new[2:])
    updates = project.refresh()
    assert updates["direct/influences"].blocks_computed == 3, "one column of chunks"
    assert updates["direct/perturbation_influences"].blocks_computed == 3
    assert {update.blocks_computed for name, update in updates.items() if name in FITTED} == {0}
    after = project.results["direct"].influences
    np.testing.assert_array_equal(after.sel(train=before.train), before)
    x = torch.tensor([row[1:4] for row in new], dtype=torch.float64)
    y = torch.tensor([row[4] for row in new])
    gradients = reference.per_sample_gradients(stored_module(project), F.cross_entropy, x, y)
    factors = project.results.influence_factors("direct").values
    late = after.sel(train=[row[0] for row in new])
    assert_close(late, factors @ gradients.numpy().T, 1e-12)


FITTED = {"model", "hessian"} | {
    f"{method}/{what}" for method in ("direct", "cg") for what in ("curvature", "influence_factors")
}


# Files that look different


def test_the_order_of_rows_in_the_files_changes_nothing(project):
    before = project.data_versions()
    for split in ("train", "test"):
        project.write(split, project.rows[split][::-1])
    updates = project.refresh()
    assert computed(updates) == set()
    assert project.data_versions() == before


@pytest.mark.parametrize("count", [40, 7])
def test_rows_are_read_in_the_order_asked_for(finished_project, count):
    bench = finished_project.bench()
    train = bench.axis("dataset", "train")
    order = np.random.default_rng(0).permutation(train.slots)[:count]
    x, y = finished_project.tensors("train")
    rows = load_rows(bench, train, order)
    torch.testing.assert_close(rows.x.cpu(), x[order])
    torch.testing.assert_close(rows.y.cpu(), y[order])


def rename(project: Project, split: str, old: str, new: str) -> None:
    path = project.root / f"{split}.csv"
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize("column", ["height", "label", "id"])
def test_a_renamed_column_is_an_error_that_names_it_and_nothing_is_lost(project, column):
    before = project.data_versions()
    rename(project, "train", column, "renamed")
    with pytest.raises(DataError, match=rf"train\.csv.*{column}"):
        project.refresh()
    assert project.data_versions() == before
    rename(project, "train", "renamed", column)
    assert computed(project.refresh()) == set()


def test_a_feature_renamed_in_both_files_is_a_new_name_and_no_new_number(project):
    before = project.results.perturbation("direct").load()
    for split in ("train", "test"):
        rename(project, split, "height", "tallness")
    updates = project.refresh()
    assert {update.blocks_computed for update in updates.values()} == {0}
    after = project.results.perturbation("direct")
    assert after.feature.values.tolist() == ["tallness", "width", "depth"]
    np.testing.assert_array_equal(before.values, after.values)


def test_other_chunks_hold_the_same_numbers(project):
    before = project.results["direct"].influences.values
    project.write_settings(store={"chunks": {"test": 5, "train": 16}})
    updates = project.refresh()
    assert updates["direct/influences"].blocks_computed == 2 * 3
    assert project.results.store.version("direct/influences").variables["influences"].chunks == (
        5,
        16,
    )
    np.testing.assert_allclose(project.results["direct"].influences, before, rtol=1e-12)


# Damage


def truncate(path: Path) -> None:
    content = path.read_bytes()
    replace(path, content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    replace(path, bytes(content))


def replace(path: Path, content: bytes) -> None:
    """A file of its own: hard links of other projects and versions keep theirs."""
    path.unlink()
    path.write_bytes(content)


def a_chunk(version: Version) -> Path:
    """The last chunk of the artifact's largest array."""
    name = max(version.variables, key=lambda each: np.prod(version.variables[each].shape))
    return sorted((version.path / name).glob("c*"))[-1]


HARMS = (truncate, flip_a_bit, Path.unlink)


@pytest.mark.parametrize(
    ("artifact", "harm"),
    [
        pytest.param(
            *(artifact, harm),
            id=f"{artifact}-{harm.__name__}",
            marks=() if number % len(HARMS) == HARMS.index(harm) else pytest.mark.campaign,
        )
        for number, artifact in enumerate(sorted(ALL))
        for harm in HARMS
    ],
)
def test_a_damaged_chunk_is_computed_again(project, finished_project, artifact, harm):
    harm(a_chunk(project.results.store.version(artifact)))
    updates = project.refresh()
    assert computed(updates) == {artifact}
    assert project.data_versions() == finished_project.data_versions()
    repaired = project.results.open(artifact).load()
    undamaged = finished_project.results.open(artifact).load()
    for name in undamaged.data_vars:
        np.testing.assert_allclose(repaired[name], undamaged[name], rtol=1e-9, atol=1e-9)
    assert not project.results.store.version(artifact).verify()


def test_a_read_only_store_serves_while_nothing_is_to_be_done(pinned, launcher, tmp_path):
    said, before = tmp_path / "said", pinned.data_versions()
    arguments = said, str(pinned.folder)
    assert launcher.run(study_faults.refresh_read_only, *arguments) == 0, said.read_text()
    pinned.edit("train", 5, height=0.7)
    assert launcher.run(study_faults.refresh_read_only, *arguments) == 1
    told = "the store is read-only; give `store.path` a folder that can be written"
    assert told in said.read_text()
    assert pinned.data_versions() == before
    pinned.write_settings(**PINNED)
    assert computed(pinned.refresh()), "elsewhere the work is still there to be done"


# A refit that starts from the θ before


def test_a_warm_start_takes_fewer_steps_to_the_same_minimum(project):
    cold = project.copy(project.root.with_name(f"{project.root.name}-cold"))
    project.write_settings(model={"fit": {"warm_start": True}})
    for each in (project, cold):
        each.edit("train", 11, height=each.rows["train"][11][1] + 0.01)
    steps, thetas = [], []
    for each in (project, cold):
        bench = each.bench()
        for node in islice(artifacts(bench.study), 2):
            update = node.refresh(bench)
        assert update.artifact == "model"
        steps.append(update.info["fit_steps"])
        thetas.append(each.results.open("model").parameters.values)
    assert steps[0] < steps[1]
    assert_close(thetas[0], thetas[1], 1e-4)
