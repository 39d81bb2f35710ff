"""The settings of a study: what is accepted, what is refused, and with which words."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from influence_dag.errors import StudyError
from influence_dag.study.base import parse_bytes
from influence_dag.study.loading import load_study
from influence_dag.study.model import LOSSES
from influence_dag.study.places import project_root
from influence_dag.study.study import Study, StudySettings, study_name

ROOT = Path(__file__).parents[1]
MINIMAL = {
    "data": {"train": "train.csv", "test": "test.csv", "id": "id"},
    "model": {"build": "model:build", "fit": {"weight_decay": 0.02}},
    "methods": {"direct": {}},
}


def settings(**changes) -> StudySettings:
    return StudySettings.model_validate({**MINIMAL, **changes})


def complaint(**changes) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**changes)
    return str(caught.value)


def model(**changes) -> dict:
    return {**MINIMAL["model"], **changes}


def test_a_minimal_study_has_the_documented_defaults():
    study = settings()
    assert study.model.loss == "cross_entropy"
    assert study.model.refit == study.curvature.refresh == "on_change"
    assert study.compute.model_dump() == {
        "device": "auto",
        "dtype": "float32",
        "block_bytes": 64 * 2**20,
        "batch_size": 512,
        "executor": "local",
        "address": None,
        "workers": None,
    }
    assert study.store.path == "data/store"
    assert study.store.keep_versions == 5
    assert study.perturbation is None


def test_settings_survive_json():
    study = settings(damping=[0.1, 1.0], methods={"direct": None, "cg": {"rtol": 1e-8}})
    assert StudySettings.model_validate_json(study.model_dump_json()) == study


@pytest.mark.parametrize("study", ["digits", "digits_cnn", "diabetes"])
def test_bundled_studies_are_valid(study):
    assert load_study(ROOT / "assets" / study).root == ROOT


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0.02,)),
        ({"damping": 0.5}, (0.5,)),
        ({"damping": 0}, (0.0,)),
        ({"damping": [0.1, 1.0]}, (0.1, 1.0)),
        ({"damping": "1e-3"}, (0.001,)),  # as YAML has 1e-3, and an environment any number
        ({"damping": 0.3, "model": model(fit="model:train")}, (0.3,)),
    ],
)
def test_damping_is_the_weight_decay_unless_given(changes, expected):
    assert settings(**changes).dampings == expected


@pytest.mark.parametrize("source", [{"fit": "model:train"}, {"fit": None, "checkpoint": "w.st"}])
def test_the_curvature_decides_the_damping_when_another_fitted_the_model(source):
    assert settings(model=model(**source)).is_auto_damped
    assert not settings(model=model(**source), damping=0.1).is_auto_damped


def test_a_fit_can_start_from_a_checkpoint():
    trained_on = settings(model=model(checkpoint="w.pt", fit={"from": "checkpoint"})).model
    assert trained_on.trains_on
    assert trained_on.wanted_minimum == "require"
    again = type(trained_on).model_validate(trained_on.model_dump(mode="json"))
    assert again == trained_on


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 * 2**20), ("1 GB", 10**9), (123, 123), ("1.5kB", 1500), (" 2 GiB ", 2**31)],
)
def test_sizes_in_bytes(text, size):
    assert parse_bytes(text) == size
    assert settings(compute={"block_bytes": text}).compute.block_bytes == size


@pytest.mark.parametrize("text", ["", "64 elephants", "-1MiB", "0", "0.2B", "1e9", None])
def test_sizes_that_are_none(text):
    assert "write for example 64MiB" in complaint(compute={"block_bytes": text})


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"methods": {"drect": {}}}, "methods.drect", "did you mean 'direct'?"),
        ({"methods": {"conjugate": {}}}, "methods.conjugate", "known are direct, cg"),
        ({"methods": {"cg": {"tol": 1e-3}}}, "methods.cg.tol", "did you mean 'rtol'?"),
        ({"methods": {"cg": {"rtol": 0}}}, "methods.cg.rtol", "greater than 0"),
        ({"methods": {"identity": {"x": 3}}}, "methods.identity.x", "known are curvature, blocks"),
        (
            {"methods": {"identity": {"curvature": "gauss_newton"}}},
            "methods.identity",
            "has none; leave it out",
        ),
        (
            {"validation": {"label_errors": {"neighbours": 0, "space": "penultimate"}}},
            "validation.label_errors",
            "neighbours: 0 looks for none",
        ),
        (
            {
                "model": model(fit=None, checkpoint="w.st"),
                "validation": {"datamodels": {"initial_weights": "others"}},
            },
            None,
            "the one start that is known is w.st; take `same`",
        ),
        ({"methods": {}}, "methods", "name at least one method of direct, cg"),
        ({"dampening": 0.1}, "dampening", "did you mean 'damping'?"),
        ({"damping": -0.1}, "damping.number", "greater than or equal to 0"),
        ({"damping": []}, None, "give at least one value"),
        ({"damping": [0.1, "big"]}, "damping.list.1", "valid number"),
        ({"damping": "small"}, "damping.name", "'auto'"),
        ({"damping": {}}, "damping.number", "valid number"),
        ({"model": model(loss="crossentropy")}, "model", ", ".join(LOSSES)),
        ({"model": model(loss=3)}, "model.loss", "valid string"),
        ({"model": model(build="model.build")}, "model.build", "expected 'module:callable'"),
        ({"model": model(build="model:")}, "model.build", "expected 'module:callable'"),
        ({"model": model(fit={"steps": 9})}, "model.fit.mapping.steps", "'max_steps'?"),
        ({"model": model(fit={"max_steps": 0})}, "model.fit.mapping.max_steps", "greater than 0"),
        ({"model": model(fit={"seed": "one"})}, "model.fit.mapping.seed", "valid integer"),
        ({"model": model(fit=3)}, "model.fit.callable", "valid string"),
        ({"model": model(fit={"batch_size": 8})}, "model.fit.mapping", "batch_size: lbfgs takes"),
        (
            {"model": model(fit={"learning_rate": 0.1, "batch_size": 8})},
            "model.fit.mapping",
            "learning_rate and batch_size: lbfgs",
        ),
        ({"model": model(checkpoint="w.st")}, "model", "either `fit` or `checkpoint`"),
        ({"model": model(fit={"from": "checkpoint"})}, "model", "needs `checkpoint`"),
        ({"model": model(minimum="maybe")}, "model.minimum", "'require', 'warn' or 'ignore'"),
        ({"model": model(fit=None)}, "model", "say where the parameters come from"),
        ({"perturbation": {"methods": ["cg"]}}, None, "methods has only direct"),
        (
            {
                "model": model(fit="model:trained"),
                "methods": {"identity": {}},
                "validation": {"leave_one_out": {}},
            },
            None,
            "identity alone has none; set damping to a number",
        ),
        ({"compute": {"dtype": "float16"}}, "compute.dtype", "'float32' or 'float64'"),
        ({"compute": {"device": "gpu"}}, "compute.device", "cuda"),
        ({"compute": {"executor": "spark"}}, "compute.executor", "'local' or 'dask'"),
        ({"compute": {"workers": 2}}, "compute", "workers say where Dask computes"),
        ({"compute": {"address": "local"}}, "compute", "write executor: dask"),
        (
            {"compute": {"executor": "dask", "address": "tcp://a:8786", "workers": 2}},
            "compute",
            "the cluster at tcp://a:8786 has workers of its own",
        ),
        (
            {"compute": {"executor": "dask", "address": "a:8786"}},
            "compute.address",
            "'a:8786' is not local, tcp://host:port",
        ),
        ({"compute": {"executor": "dask", "workers": 0}}, "compute.workers", "greater than 0"),
        (
            {"compute": {"executor": "dask"}, "store": "memory://here"},
            None,
            "store memory://here is in the memory of one process",
        ),
        ({"store": {"chunks": {"train": 0}}}, "store.chunks.train", "greater than 0"),
        ({"store": {"max_relative_error": 0.5}}, "store.max_relative_error", "less than 0.5"),
        ({"data": {"train": "a.csv"}}, "data.test", "Field required"),
        (
            {"methods": {"direct": {"blocks": [["a"], ["b"]], "block_damping": {"1": 1e39}}}},
            None,
            "damping 1e+39 is more than float32 can hold",
        ),
        ({"data": MINIMAL["data"] | {"workers": 2}}, "data", "the rows come from files; leave it"),
        (
            {"data": MINIMAL["data"] | {"features": {"dims": ["row"], "shape": [8, 8]}}},
            "data.features",
            "names 1 dimensions, shape [8, 8] has 2",
        ),
        (
            {"data": MINIMAL["data"] | {"features": {"dims": ["row", "row"]}}},
            "data.features",
            "repeats a name",
        ),
    ],
)
def test_refusals_name_the_field_and_what_would_be_right(changes, where, words):
    message = complaint(**changes)
    assert where is None or where in message.splitlines()
    assert words in message


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        settings().damping = 3.0


# From a defs.yaml


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defs.yaml").write_text(text)
    return folder


GOOD = yaml.safe_dump(
    {"type": "influence_dag.components.InfluenceStudy", "attributes": MINIMAL}, sort_keys=False
)


def test_a_study_is_named_after_its_folder_and_paths_start_at_the_project(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    study = load_study(write(tmp_path / "assets" / "mine", GOOD))
    assert study.name == "mine"
    assert study.root == tmp_path
    assert study.store_address == str(tmp_path / "data/store/mine")
    assert study.path("a.csv") == tmp_path / "a.csv"
    assert isinstance(study, Study)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my-study", "my_study"),
        ("größe", "grosse"),
        ("v1.2", "v1_2"),
        ("two words", "two_words"),
        ("naïve", "naive"),
        ("$x{y}", "x_y"),
        ("学习", "my_study"),
    ],
)
def test_a_folder_whose_name_dagster_does_not_take_is_refused_with_a_better_one(
    tmp_path, name, better
):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "defs.yaml").write_text(
        yaml.safe_dump({"type": "influence_dag.components.InfluenceStudy", "attributes": MINIMAL})
    )
    with pytest.raises(StudyError, match=rf"{re.escape(name)}: .*for example to {better}$"):
        load_study(folder)


@pytest.mark.parametrize("name", ["my_study", "A1", "2024", "_x"])
def test_letters_digits_and_underscores_name_a_study(name):
    assert study_name(Path(name)) == name


def test_without_a_project_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_root(Path("/")) == tmp_path


BAD = """\
type: influence_dag.components.InfluenceStudy
attributes:
  data:
    train: a.csv
    id: id
  model:
    build: model:build
    fit: {optimizer: lbfgs,
          max_step: 3,
          tolerance: 0}
  damping: [0.1,
            -1]
  methods:
    cgg: {}
  store: {chunks: {tset: 4}}
"""


def test_every_finding_has_its_line(tmp_path):
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path / "bad", BAD))
    file = tmp_path / "bad" / "defs.yaml"
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            f"{file}:3: data.test: Field required",
            f"{file}:9: model.fit.max_step: unknown name; did you mean 'max_steps'? (got 3)",
            f"{file}:10: model.fit.tolerance: Input should be greater than 0 (got 0)",
            f"{file}:12: damping.1: Input should be greater than or equal to 0 (got -1)",
            f"{file}:14: methods.cgg: unknown name; did you mean 'cg'?",
            f"{file}:15: store.chunks.tset: Input should be 'test' or 'train' (got 'tset')",
        ]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type: [", "not YAML"),
        ("- a\n- b\n", "`type` of a study has to be influence_dag.components.InfluenceStudy"),
        ("type: dagster.DefsFolderComponent\n", "`type` of a study has to be influence_dag"),
        ("type: influence_dag.components.InfluenceStudy\n", ":1: data: Field required"),
        ("type: influence_dag.components.InfluenceStudy\nattributes: 3\n", ":2: attributes: "),
        (GOOD.replace("direct: {}", "direct: 3"), "methods.direct: Input should be"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, words):
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path / "bad", text))
    assert words in str(caught.value)
    assert str(tmp_path / "bad" / "defs.yaml") in str(caught.value)


def test_the_address_of_a_store_is_no_study():
    with pytest.raises(StudyError, match=r"s3://a/tiny is the address .* the folder of its study"):
        load_study("s3://a/tiny")


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(StudyError, match="does not exist; give a study's folder"):
        load_study(tmp_path)
