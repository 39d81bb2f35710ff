"""Two studies of one name have one place in a store: the second is told, and replaces nothing."""

import re
import shutil

import pytest
from click.testing import CliRunner

from influence_dag.cli import main
from influence_dag.errors import StudyError
from influence_dag.query.results import open_study
from influence_dag.running import compute_shard, materialize
from influence_dag.stages.foreseen import foresee
from influence_dag.stages.graph import artifacts
from influence_dag.stages.status import status
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study
from influence_dag.study.study import Study

SMALL = {"methods": {"cg": None}, "perturbation": None}


@pytest.fixture
def small(project):
    project.write_settings(**SMALL)
    project.refresh()
    return project


def of_one_name(small):
    """Another study `tiny` in another folder of the project, of other rows."""
    other = small.root / "assets" / "more" / "tiny"
    shutil.copytree(small.folder, other)
    small.write("train", small.rows["train"][:30])
    return other


WAYS = {
    "materialize": materialize,
    "a shard that drives": lambda folder: materialize(folder, shard="1/2"),
    "another shard": lambda folder: compute_shard(folder, "2/2"),
    "status": status,
    "check": foresee,
    "its results": open_study,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_another_study_of_the_name_is_refused_by_the_names_of_both_files(small, way):
    other, before = of_one_name(small), small.data_versions()
    told = f"{other}/defs.yaml and {small.folder}/defs.yaml are two studies of one name"
    with pytest.raises(StudyError, match=re.escape(told)) as error:
        way(other)
    assert str(small.store) in str(error.value)
    assert small.data_versions() == before
    assert status(small.folder)["dataset"].reasons  # its own rows, edited: it goes on


@pytest.mark.parametrize("name", ["dataset", "model", "report"])
def test_no_artifact_of_the_other_is_refreshed_by_itself(small, name):
    study = load_study(of_one_name(small))
    node = next(node for node in artifacts(study) if node.name == name)
    with pytest.raises(StudyError, match="two studies of one name"):
        node.refresh(Workbench(study))


def test_versions_of_the_other_are_not_removed(small):
    done = CliRunner().invoke(main, ["gc", str(of_one_name(small)), "--keep", "1"])
    assert done.exit_code == 1
    assert "two studies of one name" in done.output


@pytest.mark.parametrize("how", ["renamed", "a store of its own", "removed", "broken"])
def test_each_cure_that_is_named_is_one(small, how):
    other = of_one_name(small)
    if how == "renamed":
        other = other.rename(other.parent / "other")
    elif how == "a store of its own":
        defs = other / "defs.yaml"
        defs.write_text(defs.read_text().replace("path: store", "path: elsewhere"))
    elif how == "removed":
        shutil.rmtree(small.folder)
    else:  # as it is nobody can run it
        (small.folder / "defs.yaml").write_text("type: of something else")
    results = materialize(other, progress=False)
    assert results["direct"].sizes["train"] == 30


def test_a_study_that_was_moved_goes_on_and_its_old_place_is_not_its_own_any_more(small):
    moved = small.root / "assets" / "more" / "tiny"
    shutil.copytree(small.folder, moved)
    shutil.rmtree(small.folder)
    assert materialize(moved, progress=False).store.version("dataset").number == 2
    assert small.results.store.version("direct/influences").number == 1
    assert status(moved).is_current
    assert load_study(small.store).folder == moved
    shutil.copytree(moved, small.folder)
    with pytest.raises(StudyError, match=re.escape(f"{small.folder}/defs.yaml and {moved}")):
        small.refresh()


def test_a_project_that_was_moved_or_cloned_is_the_same_study(small, tmp_path_factory):
    clone = small.copy(tmp_path_factory.mktemp("clone") / "project")
    assert all(update.is_current for update in clone.refresh().values())
    assert clone.results.store.version("dataset").number == 1


def test_a_store_that_machines_share_knows_a_study_wherever_its_project_is(small, tmp_path_factory):
    shared = str(small.root / "store")
    clone = small.copy(tmp_path_factory.mktemp("clone") / "project")
    clone.write_settings(store={"path": shared})
    clone.edit("train", 3, height=2.5)
    assert clone.refresh()["dataset"].info["train"]["changed"] == 1
    small.write("train", clone.rows["train"])
    assert all(update.is_current for update in small.refresh().values())


def test_a_place_outside_the_project_is_not_believed(small, tmp_path_factory):
    elsewhere = small.copy(tmp_path_factory.mktemp("elsewhere") / "project")
    elsewhere.write_settings(store={"path": str(small.root / "store")})
    small.remove_store()
    study = load_study(small.folder)
    outside = Study(study.name, study.settings, study.root, elsewhere.folder)
    next(artifacts(outside)).refresh(Workbench(outside))
    assert not small.refresh()["dataset"].blocks_computed
