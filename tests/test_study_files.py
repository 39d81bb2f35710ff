"""What a `defs.yaml` may hold, and in which words the rest is refused."""

import os
import time

import pytest
import yaml
from pydantic import ValidationError
from tiny_project import Project

from influence_dag.datasets.splits import load_split
from influence_dag.errors import DataError, StudyError
from influence_dag.study.base import is_cron
from influence_dag.study.data import DataSettings
from influence_dag.study.loading import load_study
from influence_dag.study.study import StudySettings

HEAD = "type: influence_dag.components.InfluenceStudy\nattributes:\n"
BODY = """\
  data: {train: a.csv, test: b.csv, id: id}
  model: {build: "m:build", fit: {weight_decay: 0.1}}
  methods: {direct: {}}
"""


def load(folder, text, name="s"):
    study = folder / name
    study.mkdir()
    (study / "defs.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_study(study)


def test_the_plain_file_is_read(tmp_path):
    assert load(tmp_path, HEAD + BODY).settings.dampings == (0.1,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            HEAD + BODY + "  damping: 0.3\n  damping: 0.05\n",
            r"7: 'damping' is given twice, first on",
        ),
        (
            HEAD + BODY.replace("{direct: {}}", "{direct: {}, direct: {}}"),
            "'direct' is given twice",
        ),
        (HEAD + BODY + "  ? [a, b]\n  : 1\n", "a key is a list or a group"),
        (b"# caf\xe9\n" + (HEAD + BODY).encode(), "not a text file in UTF-8"),
        (HEAD + BODY + "  damping: " + "9" * 5000 + "\n", "a number of 5,000 digits"),
        (HEAD + BODY + "  damping: 2020-99-99\n", "a value that cannot be read|damping"),
        (HEAD + BODY + "  damping: .inf\n", r"6: damping: .*finite number \(got inf\)"),
        (HEAD + BODY + "  damping: .nan\n", r"damping: .*(finite|greater)"),
        (HEAD + BODY + "  damping: yes\n", r"damping(\.1)?: true .YAML reads yes"),
        (HEAD + BODY + "  damping: [0.1, on]\n", r"damping(\.1)?: true .YAML reads yes"),
        (HEAD + BODY.replace("0.1", "off"), r"model\.fit\.weight_decay: false .YAML reads yes"),
        (HEAD + BODY.replace("id: id", "id: yes"), r"data\.id: true .YAML reads yes"),
        (HEAD + BODY.replace("id: id", "id: id, features: {scale: 0}"), "a scale of 0 leaves"),
        (HEAD + BODY.replace("0.1", "0.1, seed: -1"), r"model\.fit\.\S*seed"),
        (HEAD + BODY.replace("0.1", "0.1, seed: " + "1" + "0" * 400), "a number of 401 digits"),
        (HEAD + BODY + "  refresh: {schedule: a b c d e}\n", "'a b c d e' is not a cron string"),
        (HEAD + BODY + f"  store: {{path: {'s' * 300}}}\n", r"store\.path: .*a part of 300 bytes"),
        (HEAD + BODY + '  store: {path: "a\\0b"}\n', r"store\.path: not a path"),
        (HEAD + BODY + "  store: {path: ~}\n", r"store\.path: Input should be a valid string"),
        (HEAD + BODY.replace("a.csv", "~"), r"data\.train"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path, text, words):
    with pytest.raises(StudyError, match=rf"defs\.yaml.*({words})") as caught:
        load(tmp_path, text)
    assert len(str(caught.value)) < 1000


def bomb(levels: int) -> str:
    first = "  x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n"
    nested = [f"  x{k}: &x{k} [{','.join([f'*x{k - 1}'] * 10)}]\n" for k in range(1, levels)]
    return HEAD + BODY + "".join([first, *nested]) + f"  nonsense: *x{levels - 1}\n"


def test_anchors_within_anchors_end_at_once_in_few_words(tmp_path):
    started = time.perf_counter()
    with pytest.raises(StudyError, match="unfolds into more than 100,000 values") as caught:
        load(tmp_path, bomb(30))
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - started < 2


def test_long_values_are_cut_in_messages(tmp_path):
    with pytest.raises(StudyError, match="nonsense: unknown name") as caught:
        load(tmp_path, bomb(3))
    assert max(map(len, str(caught.value).splitlines())) < 500
    with pytest.raises(StudyError, match="damping") as caught:
        load(tmp_path, HEAD + BODY + f"  damping: {'a' * 10**6}\n", "t")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["damping", "atributes", "x"])
def test_what_stands_beside_the_attributes_is_refused_and_not_ignored(tmp_path, name):
    with pytest.raises(StudyError, match=f"yaml:1: '{name}' stands beside `attributes`"):
        load(tmp_path, f"{name}: 0.5\n{HEAD}{BODY}")


def test_an_anchor_may_be_used_and_merged(tmp_path):
    text = HEAD + BODY.replace("{weight_decay: 0.1}", "&fit {weight_decay: 0.1}")
    assert load(tmp_path, text + "  damping: &d 0.5\n  perturbation: null\n").settings.dampings
    loop = HEAD + "  data: &d {train: *d}\n"
    with pytest.raises(StudyError):
        load(tmp_path, loop, "t")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("0 3 * * *", True),
        ("*/15 0-6,12 1 jan,JUL mon-fri", True),
        ("@daily", True),
        ("0 0 1-31/2 * 7", True),
        ("00 03 * * *", True),
        ("0 3 * 11-1 sat-mon", True),
        ("0 3 29 2 *", True),
        ("0 3 31 2,4,5 *", True),
        ("0 3 31 2,4,06 *", False),
        ("0 3 0jan * *", False),
        ("61 * * * *", False),
        ("* 24 * * *", False),
        ("0 0 0 * *", False),
        ("a b c d e", False),
        ("*/0 * * * *", False),
        ("1-2-3 * * * *", False),
        ("@sometimes", False),
        ("* * * *", False),
        ("", False),
    ],
)
def test_cron_strings(text, good):
    assert is_cron(text) == good


def test_truth_values_stay_where_they_belong():
    body = yaml.safe_load(BODY)
    settings = StudySettings.model_validate({**body, "summary": {"self_influence": True}})
    assert settings.summary.self_influence is True
    with pytest.raises(ValidationError, match=r"true .YAML reads yes"):
        StudySettings.model_validate({**body, "summary": {"top": True}})


def test_a_device_that_is_not_there_is_told(project):
    project.write_settings(compute={"device": "cuda:99"})
    with pytest.raises(StudyError, match=r"compute\.device is cuda:99, and torch sees \d CUDA"):
        _ = project.bench().device


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def build(:\n", r"tiny_model\.py:1: not Python: "),
        ("import sys\nsys.exit(0)\n", "ended in SystemExit: 0"),
        ("1 / 0\n", "ended in ZeroDivisionError: division by zero"),
        ("import torch\nfrom torch import nothing_like_this\n", "ended in ImportError"),
    ],
)
def test_code_that_does_not_import_is_told_with_the_setting(tmp_path, source, words):
    made = Project(tmp_path, model=source)
    with pytest.raises(StudyError, match=rf"model\.build: tiny_model:build: .*{words}"):
        made.refresh()


# Files


def test_a_stray_quote_that_swallows_rows_is_told(tmp_path):
    (tmp_path / "t.csv").write_text('id,a,y\nr0,1,0\n"r1,2,1\nr2,3,0\nr3",4,1\nr4,5,0\n')
    with pytest.raises(DataError, match=r"t\.csv: line 3: .*the id is 3 lines long .*a quote"):
        read(tmp_path, "t.csv")
    (tmp_path / "t.csv").write_text('id,a,y\n"r0\nof two lines, both",1,0\nr1,2,1\n')
    assert len(read(tmp_path, "t.csv").ids) == 2


def read(folder, name):
    return load_split(DataSettings(train=name, test=name, id="id", target="y"), "train", folder)


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path, "t.csv")


def test_a_device_is_no_file(tmp_path):
    (tmp_path / "t.csv").symlink_to("/dev/null")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path, "t.csv")


def test_a_name_that_no_file_can_have_is_told(tmp_path):
    with pytest.raises(ValidationError, match="not a path: a part of 304 bytes"):
        read(tmp_path, "a" * 300 + ".csv")


def test_the_home_folder_may_be_written_as_people_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text("id,a,y\nr,1.5,0\n")
    assert read(tmp_path / "elsewhere", "~/t.csv").ids.tolist() == ["r"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.npz", b""),
        ("t.npz", b"PK\x03\x04 and no more"),
        ("t.npz", b"\x93NUMPY\x01\x00"),
        ("t.parquet", b"PAR1"),
        ("t.csv", b"id,a,y\nr,\"1,0\n"),
        ("t.csv", b"\x00" * 100),
        ("t.zarr", b"no folder"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path, name)


@pytest.mark.parametrize("name", ["t.csv", "t.npz", "t.parquet", "t.zarr"])
def test_folders_that_are_no_files_are_told(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path, name)
