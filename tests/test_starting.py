"""`init` writes a study that runs, `check` says what is wrong with one and what it will cost."""

import errno
import re
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from pydantic import BaseModel
from pydantic_core import ValidationError

from influence_dag.__main__ import main
from influence_dag.errors import DataError, ModelError, StudyError
from influence_dag.query.results import open_study
from influence_dag.stages.costs import Rates, cost_of
from influence_dag.stages.foreseen import foresee
from influence_dag.starting.folder import init
from influence_dag.starting.given import Start
from influence_dag.study.loading import load_study
from influence_dag.study.study import StudySettings


def write_tables(folder, target, **others):
    rng = np.random.default_rng(0)
    n = len(target)
    x = rng.normal(size=(n, 2))
    columns = {"id": [f"r{k}" for k in range(n)], "a": x[:, 0], "b": x[:, 1], **others}
    frame = pd.DataFrame(columns).assign(label=target)
    frame[: n - 4].to_csv(folder / "train.csv", index=False)
    frame[n - 4 :].to_csv(folder / "test.csv", index=False)


WORDS = ["red", "green", "blue"] * 8


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(name="iris", **options):
    return init(
        Start(name, **{"train": "train.csv", "test": "test.csv", "target": "label", **options})
    )


def test_patterns_are_those_of_the_folder_in_which_init_is_called(folder):
    write_tables(folder, WORDS, note=["some text"] * 24)
    whole = pd.read_csv("train.csv")
    whole[:9].to_csv("part-1.csv", index=False)
    whole[9:].to_csv("part-2.csv", index=False)
    assert "20 training rows" in start("studies/iris", train="part-*.csv")
    settings = yaml.safe_load((folder / "studies/iris/defs.yaml").read_text())["attributes"]
    assert settings["data"]["train"] == "../../part-*.csv"
    assert settings["data"]["keep"] == ["note"]
    assert foresee(folder / "studies/iris").rows == {"train": 20, "test": 4}
    with pytest.raises(DataError, match=r"--train: no file matches .*/parts-\*\.csv"):
        start("other", train="parts-*.csv")
    for name in ("part-1.csv", "part-2.csv"):
        pd.read_csv(name).drop(columns="id").to_csv(name, index=False)
    with pytest.raises(DataError, match=r"part-\*.csv: no column of these files is called like"):
        start("other", train="part-*.csv")
    assert not (folder / "other").exists()


def test_what_init_writes_runs(folder):
    write_tables(folder, WORDS, note=["some text"] * 24)
    given = "--train train.csv --test test.csv --target label --id id"
    done = CliRunner().invoke(main, f"init iris {given}")
    assert done.exit_code == 0, done.output
    assert "3 classes, blue, green, red" in done.output
    assert sorted(path.name for path in (folder / "iris").iterdir()) == [
        "defs.yaml",
        "model.py",
        "pyproject.toml",
    ]
    done = CliRunner().invoke(main, ["materialize", "iris", "--quiet", "--show"])
    assert done.exit_code == 0, done.output
    assert "(red)  some text" in done.output
    influences = open_study("iris")["direct"].influences
    assert influences.shape == (4, 20)
    assert influences.train_label.values[:3].tolist() == ["red", "green", "blue"]


def names_of(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_every_option_stands_in_the_file_and_can_be_set(folder):
    write_tables(folder, WORDS)
    start()
    text = (folder / "iris/defs.yaml").read_text()
    written = set(re.findall(r"^ *#?(\w+):", text, flags=re.MULTILINE))
    groups = [StudySettings, *map(type, (load_study("iris").settings.compute,))]
    for group in groups:
        assert names_of(group) <= written
    for option in ("classes", "keep", "on_indefinite", "leave_one_out", "keep_versions", "wrt"):
        assert option in written
    for option in ("on_indefinite", "keep", "max_steps"):
        text = text.replace(f"#{option}:", f"{option}:", 1)
    (folder / "iris/defs.yaml").write_text(text)
    assert load_study("iris").settings.methods["direct"].on_indefinite == "raise"
    assert yaml.safe_load(text)["attributes"]["data"]["target"] == "label"


@pytest.mark.parametrize(
    ("target", "loss", "outputs"),
    [
        (np.linspace(0, 1, 24), "mse", 1),
        ([0, 1, 2] * 8, "cross_entropy", 3),
        ([3, 5] * 12, "cross_entropy", 2),
        ([True, False] * 12, "cross_entropy", 2),
        (np.arange(24) * 7, "mse", 1),
    ],
    ids=["decimals", "positions", "numbers as names", "truth values", "amounts"],
)
def test_the_model_fits_the_target(folder, target, loss, outputs):
    write_tables(folder, target)
    start()
    assert load_study("iris").settings.model.loss == loss
    assert f"nn.Linear(2, {outputs})" in (folder / "iris/model.py").read_text()
    foresee("iris")


def test_rows_without_ids_get_some(folder):
    write_tables(folder, WORDS)
    for name in ("train.csv", "test.csv"):
        pd.read_csv(name).drop(columns="id").to_csv(name, index=False)
    assert "with a column 'id'" in start()
    frame = pd.read_csv(folder / "iris/train.csv")
    assert frame.columns.tolist() == ["id", "a", "b", "label"]
    assert frame.id.tolist()[:2] == ["train-00", "train-01"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "bad.parquet"}, r"^bad\.parquet: not a readable \.parquet: "),
        ({"train": "bad.feather"}, r"^bad\.feather: not a readable \.feather: "),
        ({"train": "nothing"}, r"nothing has no pictures \(\.png, "),
        ({"target": "id"}, r"iris: id and target both name 'id'; each needs a column"),
        ({"classes": ("red", "")}, r"iris: classes are names of outputs: each once, none empty"),
    ],
    ids=["parquet", "feather", "an empty folder", "the target as id", "an empty class"],
)
def test_what_cannot_be_read_or_contradicts_itself_is_told(folder, options, words):
    write_tables(folder, WORDS)
    for name in ("bad.parquet", "bad.feather"):
        (folder / name).write_text("id,a,label\n")
    (folder / "nothing").mkdir()
    with pytest.raises((DataError, StudyError), match=words):
        start(**options)
    assert not (folder / "iris").exists()


@pytest.mark.parametrize("ending", [".csv.gz", ".csv.zst"])
def test_packed_tables_are_looked_at_as_others_are(folder, ending):
    write_tables(folder, WORDS, note=["some text"] * 24)
    for name in ("train", "test"):
        content = pa.py_buffer((folder / f"{name}.csv").read_bytes())
        codec = {".csv.gz": "gzip", ".csv.zst": "zstd"}[ending]
        with pa.output_stream(folder / f"{name}{ending}", compression=codec) as packed:
            packed.write(content)
    said = start(train=f"train{ending}", test=f"test{ending}")
    assert "ids: column 'id'" in said
    assert "no input, travels along: note" in said
    foresee("iris")


def test_rows_that_get_ids_are_copied_cell_by_cell(folder):
    lines = ["a;b;code;label", "1,50;1e3;007;NA", '2,5;2;010;"x; ""y"""', "0,1;3;011;NA"]
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    start(classes=("NA", 'x; "y"'))
    copied = (folder / "iris/train.csv").read_text().splitlines()
    assert copied == ["id;" + lines[0], *(f"train-{k};{line}" for k, line in enumerate(lines[1:]))]
    foresee("iris")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "a,label,\n1,x,\n2,y,\n",
            r"train\.csv: column 3 of 3 .* take off the separator that ends each",
        ),
        (",a,label\n0,1,x\n1,2,y\n", r"train\.csv: column 1 of 3 has no name of its own"),
        ("a,a,label\n1,2,x\n3,4,y\n", r"train\.csv: line 1 names the column 'a' more than once"),
        ("a,label\n1,x\n,y\n", r"train\.csv: line 3 \(id 'train-1'\), column 'a': seen an empty"),
    ],
    ids=["a comma at each end", "row numbers saved along", "a column twice", "an empty cell"],
)
def test_a_table_that_is_refused_leaves_no_copy_behind(folder, lines, words):
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(lines)
    with pytest.raises(DataError, match=f"^{words}"):
        start()
    assert not (folder / "iris").exists()


@pytest.mark.parametrize(
    ("ends", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "failed: No space left .* has room"),
        (KeyboardInterrupt("now"), "^now$"),
        (ValidationError.from_exception_data("data", []), "iris"),
    ],
    ids=["a full disk", "an interrupt", "settings that are none"],
)
def test_a_start_that_fails_leaves_nothing_that_the_next_would_meet(
    folder, monkeypatch, ends, seen
):
    """Copies of tables, a package's mark, half a defs.yaml: the next start met them and refused."""

    def fail(path, content):
        if path.name == "model.py":
            path.touch()
            raise ends
        path.write_bytes(content)

    write_tables(folder, WORDS)
    for name in ("train.csv", "test.csv"):
        pd.read_csv(name).drop(columns="id").to_csv(name, index=False)
    (folder / "pyproject.toml").touch()
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("influence_dag.starting.folder.write_atomically", fail)
    with pytest.raises((StudyError, KeyboardInterrupt), match=seen):
        start()
    assert sorted(folder.rglob("*")) == before
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    start()


def test_other_separators_and_decimal_commas_are_found(folder):
    write_tables(folder, WORDS)
    for name in ("train.csv", "test.csv"):
        pd.read_csv(name).to_csv(name, index=False, sep=";", decimal=",")
    start()
    csv = load_study("iris").settings.data.csv
    assert (csv.separator, csv.decimal) == (";", ",")
    assert foresee("iris").features == {"x": (2,)}


def test_in_a_project_the_model_is_one_of_its_modules(folder):
    write_tables(folder, WORDS)
    (folder / "pyproject.toml").touch()
    start("assets/iris")
    study = load_study("assets/iris")
    assert study.settings.model.build == "assets.iris.model:build"
    assert study.root == folder
    foresee("assets/iris")
    with pytest.raises(StudyError, match="'not-a-name' is no name of a package"):
        start("not-a-name/iris")


def test_what_init_cannot_use_is_told(folder):
    write_tables(folder, WORDS)
    with pytest.raises(DataError, match=r"no target column 'lable' .*did you mean 'label'"):
        start(target="lable")
    with pytest.raises(DataError, match=r"no file .*trian\.csv; did you mean 'train\.csv'"):
        start(train="trian.csv")
    assert not (folder / "iris/defs.yaml").exists()
    start()
    with pytest.raises(StudyError, match=r"defs\.yaml exists"):
        start()


def test_one_class_is_nothing_to_tell_apart(folder):
    for split in ("train", "test"):
        pd.DataFrame({"a": [0.5, 1.5], "kind": ["x", "x"]}).to_csv(f"{split}.csv", index=False)
    with pytest.raises(DataError, match="every row has the label 'x'"):
        start("alone", target="kind")
    assert not (folder / "alone").exists()


# Other data than tables of numbers


def write_pictures(folder, sizes=((6, 5),), mode="L"):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for k in range(count):
            path = folder / split / ("cat", "dog")[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows, columns = sizes[k % len(sizes)]
            values = rng.integers(0, 256, (rows, columns), np.uint8)
            picture = Image.fromarray(values)
            if mode == "transparent":
                picture.putalpha(picture.copy())
            else:
                picture = picture.convert(mode)
            picture.save(path)


@pytest.mark.parametrize(
    ("sizes", "mode", "shape"),
    [
        (((6, 5),), "L", (1, 6, 5)),
        (((6, 5), (7, 4)), "RGB", (3, 6, 4)),
        (((90, 70),), "L", (1, 64, 64)),
        (((6, 5),), "RGBA", (3, 6, 5)),
        (((6, 5),), "transparent", (4, 6, 5)),
    ],
    ids=["alike", "of two sizes", "large", "opaque", "transparent"],
)
def test_a_folder_of_pictures(folder, sizes, mode, shape):
    write_pictures(folder, sizes, mode)
    said = start("pets", train="train", test="test", target=None)
    assert "2 classes, cat, dog" in said
    assert f"{shape[0]} channels, {shape[1]} × {shape[2]}" in said
    found = foresee("pets")
    assert found.features == {"x": shape}
    assert found.classes == ("cat", "dog")
    assert (
        "size"
        in yaml.safe_load((folder / "pets/defs.yaml").read_text())["attributes"]["data"]["images"]
    ) == ("all are made this size" in said)


def test_a_table_of_paths(folder):
    write_pictures(folder)
    for split in ("train", "test"):
        paths = sorted(path.as_posix() for path in (folder / split).rglob("*.png"))
        rows = [{"file": str(p).split(f"{folder}/")[1], "kind": p.split("/")[-2]} for p in paths]
        pd.DataFrame(rows).to_csv(f"{split}.csv", index=False)
    assert "paths of the pictures, column 'file'" in start("pets", target="kind")
    study = load_study("pets").settings.data
    assert study.images is not None
    assert (study.images.path, study.images.channels, study.id) == ("file", 1, "file")
    assert foresee("pets").features == {"x": (1, 6, 5)}


def embeddings(n=12):
    rng = np.random.default_rng(0)
    labels = np.array(["up", "down"])[np.arange(n) % 2]
    return rng.normal(size=(n, 4)), labels, [f"sentence {k}" for k in range(n)]


def test_embeddings_with_their_texts_as_arrays(folder):
    vectors, labels, texts = embeddings()
    for name in ("train.npz", "test.npz"):
        np.savez(name, embedding=vectors, label=labels, text=texts, length=np.arange(12))
    said = start("texts", train="train.npz", test="test.npz")
    assert "travels along: text, length" in said
    assert foresee("texts").features == {"x": (4,)}
    CliRunner().invoke(main, ["materialize", "texts", "--quiet"], catch_exceptions=False)
    assert open_study("texts")["direct"].influences.train_text.values[3] == "sentence 3"


def test_embeddings_as_lists_in_a_table(folder):
    vectors, labels, texts = embeddings()
    frame = pd.DataFrame({"text": texts, "label": labels, "embedding": list(vectors)})
    for name in ("train.parquet", "test.parquet"):
        frame.assign(id=texts).to_parquet(name)
    said = start("texts", train="train.parquet", test="test.parquet")
    assert "inputs: embedding, lists of 4 numbers" in said
    found = foresee("texts")
    assert (found.features, found.classes) == ({"x": (4,)}, ("down", "up"))
    assert load_study("texts").settings.data.keep == ("text",)


# A trained network


NETWORK = "from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 3)\n"


def test_a_checkpoint_and_its_code(folder):
    write_tables(folder, WORDS)
    (folder / "red_green_net.py").write_text(NETWORK)
    torch.save(torch.nn.Linear(2, 3).state_dict(), "net.pt")
    options = {"model": "red_green_net:build", "checkpoint": "net.pt"}
    with pytest.raises(StudyError, match=r"red_green_net\.py lies in .*an empty pyproject\.toml"):
        start("mine", **options)
    (folder / "pyproject.toml").touch()
    with pytest.raises(StudyError, match="has no 'built'; did you mean build"):
        start("mine", **{**options, "model": "red_green_net:built"})
    given = "--train train.csv --test test.csv --target label --classes red,green,blue"
    given += " --model red_green_net:build --checkpoint net.pt"
    done = CliRunner().invoke(main, f"init mine {given}")
    assert done.exit_code == 0, done.output
    settings = load_study("mine").settings
    assert (settings.model.build, settings.model.fit) == ("red_green_net:build", None)
    assert settings.data.classes == ("red", "green", "blue")
    with pytest.warns(RuntimeWarning, match="no better than chance"):
        assert foresee("mine").parameters == 9
    assert not (folder / "mine/model.py").exists()


def test_a_checkpoint_without_its_code_is_refused(folder):
    write_tables(folder, WORDS)
    torch.save({}, "net.pt")
    with pytest.raises(StudyError, match=r"holds numbers, not the network: name .* --model"):
        start("mine", checkpoint="net.pt")
    with pytest.raises(StudyError, match=r"--checkpoint: no file .*nut\.pt"):
        start("mine", checkpoint="nut.pt")
    with pytest.raises(StudyError, match="write module:callable"):
        start("mine", model="net.py")
    with pytest.raises(DataError, match="Name it: --target"):
        start("mine", target=None)
    assert not (folder / "mine").exists()


# check


def test_sizes_are_those_that_a_refresh_stores(project):
    found = {cost.artifact: cost for cost in foresee(project.folder).costs}
    assert set(found) == set(project.results.artifacts)
    for name in found.keys() - {"model", "report", "cg/curvature", "cg/influence_factors"}:
        stored = project.results.store.version(name).variables.values()
        numbers = [int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize for each in stored]
        assert found[name].disk == pytest.approx(sum(numbers), rel=0.2), name


def test_matrices_are_of_64_bits_in_a_study_of_32(project):
    study = load_study(project.folder)
    rates = Rates(1000, 10, 3, 4, 31, 99, gradient=1e-3, on_demand=False, product=0.0)
    for name in ("hessian", "direct/curvature"):
        (variable, *_) = project.results.store.version(name).variables.values()
        assert np.dtype(variable.dtype) == np.float64
        assert cost_of(name, study, rates).disk == 8 * 31**2


def test_the_factors_of_each_method_cost_what_it_multiplies_with_the_curvature(project):
    """Iterative ones at each step, others for residuals alone, which are of a sample where many."""
    asked = {name: {} for name in ("direct", "cg", "nystroem", "ekfac", "identity")}
    project.write_settings(methods=asked | {"kfac": {"residuals": "all"}})
    study = load_study(project.folder)

    def seconds(method: str, train: int = 1000) -> float:
        rates = Rates(train, 10, 3, 8, 4096, 99, gradient=1e-3, on_demand=False, product=0.0)
        return cost_of(f"{method}/influence_factors", study, rates).seconds

    assert seconds("identity") == seconds("direct") == 0
    assert seconds("cg") == 30 * seconds("ekfac") == 30 * seconds("nystroem")
    many = 2**20
    assert seconds("ekfac", many) == pytest.approx(seconds("kfac", many) / 16)


def test_a_check_says_rows_classes_and_parameters_within_seconds(project):
    started = time.process_time()
    text = str(foresee(project.folder))
    assert time.process_time() - started < 5
    assert "40 training rows, 10 test rows, 3 features; 31 parameters" in text
    assert "warning" not in text
    assert not (project.root / "store/tiny/dataset/versions/000002").exists()


def test_columns_of_other_scales_are_told(project):
    for row in project.rows["train"]:
        row[1] *= 1e5
    project.write("train")
    assert "columns of very different scales (height ±" in str(foresee(project.folder))


def test_a_check_finds_what_a_refresh_would(project):
    project.edit("test", 4, label=7)
    with pytest.raises(DataError, match=r"test\.csv: row 'test-04', column 'label': label 7"):
        foresee(project.folder)
    project.edit("test", 4, label=1)
    project.write_model("from torch import nn\n\ndef build():\n    return nn.Linear(5, 3)\n")
    with pytest.raises(ModelError, match="the model fails on inputs"):
        foresee(project.folder)
    project.write_settings(data={"train": "nowhere.csv"})
    with pytest.raises(DataError, match=r"no file .*nowhere\.csv"):
        foresee(project.folder)


def test_more_than_fits_on_the_disk_is_told(project, monkeypatch):
    monkeypatch.setattr(
        "influence_dag.store.posix.versions.ArtifactStore.free_bytes", lambda store: 1000
    )
    monkeypatch.setattr("influence_dag.objective.free_memory.free_memory", lambda: 1000)
    text = str(foresee(project.folder))
    assert "are to be stored, 1,000 B are free" in text
    assert "of memory, 1,000 B are there" in text
