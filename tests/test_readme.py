import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STUDY = (ROOT / "docs" / "own-study.md").read_text()  # what the README has no room for


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what a clone of the repository has, without results."""
    (tmp_path / "data").mkdir()
    for folder in ("assets", "data/diabetes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run_as_they_stand(project, capsys):
    blocks = [
        block
        for page in (README, STUDY)
        for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) == 4
    assert len(blocks[0].splitlines()) <= 15
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert shown.count("(train: 5)") == 4
    assert "(feature: 10)" in shown
    assert (project / "data/store/diabetes/direct/influences/current").exists()


def test_the_study_of_the_readme_is_valid():
    import yaml

    from influence_dag.study.study import StudySettings

    texts = re.findall(r"^```yaml\n(.*?)^```", STUDY, flags=re.MULTILINE | re.DOTALL)
    study, more = map(yaml.safe_load, texts)
    settings = StudySettings.model_validate(study["attributes"] | more)
    assert settings.dampings == (0.01,)
    assert settings.validation.names == ("leave_one_out", "datamodels", "label_errors")


def test_the_commands_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
