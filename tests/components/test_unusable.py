"""A study that cannot be loaded is told, and takes no other one with it."""

import logging
import shutil
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import pytest
from tiny_project import Project

from influence_dag import study_assets
from influence_dag.components import InfluenceStudy
from influence_dag.components import keys as keys_of_assets
from influence_dag.components.influence_study import unusable
from influence_dag.errors import StudyError
from influence_dag.study.loading import load_study

TOOL = """\
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "twins"
code_location_target_module = "twins"
defs_module = "twins"
"""
NAMES = ("tiny", "my-study", "my study", "étude")


@pytest.fixture
def logged(monkeypatch) -> list[logging.LogRecord]:
    """What Dagster's logger is told."""
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("dagster"), "handle", records.append)
    return records


@pytest.mark.filterwarnings("ignore:Parameter")
def test_badly_named_studies_are_told_in_the_graph_and_the_log_and_the_others_are_loaded(
    tmp_path, logged, monkeypatch
):
    monkeypatch.setattr(keys_of_assets, "_made_by", {})
    project = Project(tmp_path)
    settings = load_study(project.folder).settings
    contexts = [
        SimpleNamespace(
            path=project.folder.with_name(name),
            project_root=tmp_path,
            defs_module_path=tmp_path / "assets",
        )
        for name in NAMES
    ]
    found = [InfluenceStudy(settings).build_defs(cast(Any, each)) for each in contexts]
    graph = dg.Definitions.merge(*found).resolve_asset_graph()
    keys = graph.get_all_asset_keys()
    assert dg.AssetKey(["tiny", "direct", "influences"]) in keys
    told = [str(graph.get(key).description) for key in keys if key.path[0] == "studies_not_loaded"]
    assert len(told) == 3
    for name, better in (("my-study", "my_study"), ("étude", "etude")):
        words = f"The study in the folder {name} was not loaded."
        (description,) = [each for each in told if each.startswith(words)]
        assert f"rename the folder, for example to {better}" in description
    assert not graph.executable_asset_keys & {k for k in keys if k.path[0] == "studies_not_loaded"}
    assert sum("not loaded" in record.getMessage() for record in logged) == 3
    study_assets(project.folder)
    said = "tiny: its assets are made by assets/tiny/defs.yaml and by code (study_assets"
    assert logged[-1].getMessage().startswith(said)


@pytest.mark.filterwarnings("ignore:Parameter")
def test_two_studies_of_one_name_are_told_with_both_files_and_the_others_are_loaded(
    tmp_path, monkeypatch
):
    """Dagster ends with the key that is there twice, and loads nothing."""
    project = Project(tmp_path)
    for name in ("tiny", "more/tiny", "other"):
        (tmp_path / "twins" / name).mkdir(parents=True)
        shutil.copy(project.folder / "defs.yaml", tmp_path / "twins" / name)
    (tmp_path / "twins/__init__.py").touch()
    (tmp_path / "twins/more/other").mkdir()
    (tmp_path / "twins/more/other/defs.yaml").symlink_to("nowhere")
    (tmp_path / "pyproject.toml").write_text(TOOL)
    monkeypatch.syspath_prepend(str(tmp_path))
    graph = dg.load_from_defs_folder(project_root=tmp_path).resolve_asset_graph()
    keys = graph.get_all_asset_keys()
    assert dg.AssetKey(["other", "direct", "influences"]) in keys
    told = [str(graph.get(key).description) for key in keys if key.path[0] == "studies_not_loaded"]
    assert len(told) == 2
    files = {"twins/tiny/defs.yaml", "twins/more/tiny/defs.yaml"}
    for description in told:
        assert "are two studies of one name" in description
        assert all(file in description for file in files)
        assert "rename one of the folders" in description


def test_a_folder_whose_name_is_no_text_takes_no_other_study_with_it():
    found = unusable("a\udcff", StudyError("no b\udcff"))
    spec = cast("dg.AssetSpec", *(found.assets or ()))
    assert spec.key.path[0] == "studies_not_loaded"
    assert spec.description == r"The study in the folder a\udcff was not loaded. no b\udcff"
