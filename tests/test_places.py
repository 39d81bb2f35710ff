"""One rule for relative paths; a study is found by its folder and by its results."""

import shutil

import pytest

from influence_dag.errors import DataError, StudyError
from influence_dag.query.results import open_study
from influence_dag.stages.status import status
from influence_dag.study.loading import load_study


def test_inputs_of_the_studys_folder_come_before_the_projects(project):
    before = load_study(project.folder).settings.data
    assert (before.train, before.test) == ("train.csv", "test.csv")
    project.write_settings(data={"test": "te*.csv"})  # which the project alone has
    assert load_study(project.folder).settings.data.test == "te*.csv"
    shutil.copy(project.root / "train.csv", project.folder)
    assert load_study(project.folder).settings.data.train == "assets/tiny/train.csv"
    project.write_settings(data={"train": "./train*.csv", "test": "../../test.csv"})
    data = load_study(project.folder).settings.data
    assert (data.train, data.test) == ("assets/tiny/train*.csv", "test.csv")
    assert project.refresh()["dataset"].info["rows"] == {"train": 40, "test": 10}


def test_a_checkpoint_may_lie_beside_the_study(project):
    (project.folder / "given.safetensors").touch()
    project.write_settings(model={"fit": None, "checkpoint": "given.safetensors"}, damping=0.1)
    assert load_study(project.folder).settings.model.checkpoint == "assets/tiny/given.safetensors"


def test_files_that_the_code_opens_may_lie_beside_the_study(project):
    """As other inputs of the settings: the file of that name in the project is another one."""
    for folder in (project.root, project.folder):
        (folder / "words.json").write_text(str(folder))
    project.write_settings(model={"depends_on": ["words.json"]})
    assert load_study(project.folder).settings.model.depends_on == ("assets/tiny/words.json",)
    project.refresh()
    (project.root / "words.json").write_text("another")
    assert status(project.folder)["model"].is_current
    (project.folder / "words.json").write_text("another")
    assert not status(project.folder)["model"].is_current


def test_the_error_says_the_rule_and_the_root(project):
    project.write_settings(data={"train": "trian.csv"})
    with pytest.raises(DataError) as caught:
        project.refresh()
    for said in ("the study's folder, then in the project's", str(project.root), "'train.csv'"):
        assert said in str(caught.value)


def test_a_study_is_found_by_its_folder_and_by_its_results(project):
    assert status(project.store).is_current
    assert load_study(project.store).folder == project.folder.resolve()
    by_folder, by_store = open_study(project.folder), open_study(project.store)
    assert by_folder.store.address == by_store.store.address
    assert by_folder.methods == ["direct", "cg"]


def test_results_without_their_study_are_told(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tiny"
    shutil.copytree(project.store, elsewhere, symlinks=True)
    with pytest.raises(StudyError, match="holds a study's results, and its study is not found"):
        load_study(elsewhere)
    shutil.rmtree(project.folder)
    with pytest.raises(StudyError, match=f"looked in {project.root}"):
        load_study(project.store)
