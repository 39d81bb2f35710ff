"""The tutorials run as they stand and print what they say."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tutorials import ROOT, TUTORIALS, assert_it_prints_what_it_says, blocks

from influence_dag.__main__ import main
from influence_dag.running import materialize
from influence_dag.study.study import RefreshSettings


@pytest.mark.parametrize("tutorial", ["refresh", "your_network"])
def test_a_tutorial_prints_what_it_says(tutorial, tmp_path, monkeypatch):
    assert_it_prints_what_it_says(tutorial, tmp_path, monkeypatch)


def test_the_arrays_of_a_study_with_xarray_alone(tmp_path, monkeypatch):
    for folder in ("assets", "data/diabetes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    materialize("assets/diabetes", progress=False)
    code = "\n".join(blocks("plain_xarray", "python"))
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nassert 'influence_dag' not in sys.modules"],
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert not done.returncode, done.stderr
    assert [done.stdout] == blocks("plain_xarray", "text")
    assert (tmp_path / "influences.png").stat().st_size > 10_000


def test_the_settings_that_it_shows_are_valid():
    (text,) = blocks("refresh", "yaml")
    settings = RefreshSettings.model_validate(yaml.safe_load(text)["refresh"])
    assert settings.automation
    assert settings.schedule == "0 3 * * *"


# From files of one's own to the rows behind a prediction


STEP = re.compile(r"^```(python|sh|text)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def run_step(language: str, text: str, names: dict) -> str:
    """What a block of a tutorial prints."""
    if language == "python":
        with redirect_stdout(StringIO()) as shown:
            exec(compile(text, "tutorial", "exec"), names)
        return shown.getvalue()
    program, *arguments = text.split()
    assert program == "influence-dag"
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def follow(tutorial: str) -> dict:
    """Every step of a tutorial in the working directory, and the names that its code leaves."""
    names: dict = {}
    printed = ""
    for language, text in STEP.findall((TUTORIALS / f"{tutorial}.md").read_text()):
        if language == "text":
            assert text in printed
        else:
            printed = run_step(language, text, names)
    return names


def test_from_a_table_to_the_rows_behind_a_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = follow("own_table")
    study, top = names["study"], names["top"]
    assert (np.diff(top.values) <= 0).all()
    assert set(top.train_label.values) <= {"benign", "malignant"}
    largest = study["direct"].influences.sel(test="test-00").values.max()
    assert top.values[0] == largest
    predicted = names["idag"].suspects(study, 500)
    assert (predicted.predicted == predicted.train_label).mean() > 0.9


def share_of_own_label(influences) -> float:
    """Of the five most helpful rows of each test row, those with its label."""
    top = influences.load().idag.top_k(5)
    labels = dict(
        zip(influences.train.values.tolist(), influences.train_label.values.tolist(), strict=True)
    )
    helpful = np.vectorize(labels.get)(top.train.values)
    return float((helpful == influences.test_label.values[:, None]).mean())


def test_from_a_folder_of_images_to_the_pictures_behind_a_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = follow("images")
    influences = names["study"]["direct"].influences
    assert all((tmp_path / "pictures/train" / name).is_file() for name in influences.train.values)
    assert share_of_own_label(influences) > 0.9  # by chance 0.1
    assert names["top"].train_label.values.tolist() == ["seven"] * 3


def test_from_sentences_to_the_sentences_behind_a_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = follow("sentences")
    influences, rows = names["influences"], names["rows"].set_index("id")
    written = rows.text[influences.train.values].tolist()
    assert influences.train_text.values.tolist() == written
    assert influences.test_text.values.tolist() == rows.text[influences.test.values].tolist()
    assert share_of_own_label(influences) > 0.6  # by chance 0.3
