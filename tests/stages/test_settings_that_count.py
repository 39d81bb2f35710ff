"""No setting is read and left aside: each changes what would be computed, is refused, or is shown.

Those of methods are in `test_method_settings.py`, numbers and all. Whoever adds a setting says here
what comes of it.
"""

from pathlib import Path

import pytest
from every_setting import settings

from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.stages import model, validation
from influence_dag.stages.status import each_status
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study
from influence_dag.study.study import StudySettings

TESTS = Path(__file__).parents[1]

PLANNED = {  # a value under which a finished study would be computed anew, or is refused
    "data.train": "test.csv",
    "data.test": "train.csv",
    "data.id": None,
    "data.target": "depth",
    "data.classes": ["2", "1", "0"],
    "data.keep": ["depth"],
    "data.csv.separator": ";",
    "data.csv": {"decimal": ",", "separator": ";"},
    "data.csv.encoding": "utf-16",
    "data.images.root": ".",
    "data.images.path": "label",
    "data.images.size": [2, 2],
    "data.images.channels": 1,
    "data.weight": "depth",
    "data.features.dims": ["measured"],
    "data.features.shape": [1, 3],
    "data.features.scale": 2.0,
    "data.features.columns": ["depth", "width", "height"],
    "data.features.standardise": True,
    "data.workers": 1,
    "model.build": "tiny_model:other",
    "model.loss": "tiny_model:loss",
    "model.measurement": "tiny_model:loss",
    "model.depends_on": ["train.csv"],
    "model.checkpoint": "theta.pt",
    "model.output": "0",
    "damping": 0.5,
    "perturbation.methods": ["cg"],
    "perturbation.wrt": "1",
    "perturbation.pairs": "top-3",
    "perturbation.max_bytes": 8,
    "perturbation.reduce": {"over": "feature", "by": "mean"},
    "summary.top": 3,
    "summary.self_influence": False,
    "compute.dtype": "float32",
    "compute.address": "tcp://there:8786",
    "compute.workers": 2,
    "store.chunks": {"test": 3, "train": 8},
    "store.max_relative_error": 1e-3,
}
ADAM = {"optimizer": "adam", "max_steps": 3}  # whose steps all settings of a fit are about
FIT = {
    "optimizer": "sgd",
    "max_steps": 4,
    "weight_decay": 0.5,
    "seed": 1,
    "learning_rate": 0.5,
    "batch_size": 8,
    "tolerance": 1e-3,
    "warm_start": True,
    "from": "checkpoint",
}
REDUCED = {"over": "test", "by": "l2"}
VALIDATIONS = {
    "leave_one_out": {"rows": 3, "seed": 1, "method": "cg", "tolerance": 1e-3, "max_steps": 9},
    "datamodels": {
        "count": 3,
        "fraction": 0.3,
        "dampings": [0.2],
        "initial_weights": "others",
        "seed": 1,
    },
    "label_errors": {
        "share": 0.2,
        "curvature": "hessian",
        "neighbours": 3,
        "space": "penultimate",
        "folds": 3,
        "seed": 1,
    },
}
SHOWN = {  # the test of what it does: these change no number of a study whose rows stay
    "compute.batch_size": "stages/test_chain.py::test_a_setting_costs_what_depends_on_it",
    "compute.block_bytes": "stages/test_chain.py::test_blocks_smaller_than_a_row_give_the_same",
    "compute.device": "test_study_files.py::test_a_device_that_is_not_there_is_told",
    "compute.executor": "stages/test_dask_executor.py::test_nothing_is_computed_and_nobody_started",
    "curvature.refresh": "stages/test_updates.py::test_new_training_rows_at_pinned_policies",
    "dagster.key_prefix": "components/test_from_code.py::test_a_prefix_comes_before_the_study",
    "dagster.owners": "components/test_existing_project.py::test_the_assets_say_whose_they_are",
    "dagster.tags": "components/test_existing_project.py::test_the_assets_say_whose_they_are",
    "data.deps": "components/test_from_code.py::test_upstream_assets_change_no_number_and_no_code",
    "model.minimum": "stages/test_given_checkpoints.py::test_a_minimum_can_be_required",
    "model.refit": "stages/test_updates.py::test_new_training_rows_at_pinned_policies",
    "refresh.automation": "components/test_automation.py::test_automation_looks_at_the_files",
    "refresh.schedule": "components/test_automation.py::test_a_schedule_refreshes_everything",
    "store.keep_versions": "stages/test_damaged_studies.py::test_a_reader_of_a_version_that_is_rem",
    "store.lock_timeout": "stages/test_shared_stores.py::test_who_waits_too_long_is_told",
    "store.locks": "store/test_file_systems.py::test_a_lock_file_keeps_others_out_and_says_who",
    "store.path": "stages/test_study_in_memory.py::test_every_artifact_has_the_same_keys",
}


def group(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]


def every_setting() -> set[str]:
    """All but those of methods, and but groups, whose settings are among them."""
    found = {f"{path}.{name}" if path else name for path, name in settings(StudySettings)}
    groups = {path.rpartition(".")[0] for path in found}
    return {path for path in found - groups if not path.startswith("methods")}


def test_what_comes_of_every_setting_is_said():
    said = {path for path in PLANNED if path not in ("data.csv", "perturbation.reduce")}
    said |= {"data.csv.decimal", *(f"perturbation.reduce.{name}" for name in REDUCED), *SHOWN}
    said |= {f"model.fit.{name}" for name in FIT}
    said |= {f"validation.{kind}.{name}" for kind, of in VALIDATIONS.items() for name in of}
    assert every_setting() == said


@pytest.mark.parametrize("path", PLANNED)
def test_a_setting_changes_what_a_refresh_would_compute_or_is_refused(project, path):
    project.write_settings(**group(path, PLANNED[path]))
    changed, refused = False, ""
    try:
        bench = Workbench(load_study(project.folder), plan_only=True)
        changed = any(not each.is_current for each in each_status(bench))
    except InfluenceDagError as error:
        refused = str(error)
    assert changed or any(name in refused for name in path.split(".")[1:]), refused


def test_a_setting_of_a_fit_is_in_the_key_of_the_model(project):
    def key(**fit):
        project.settings["model"]["fit"] = fit
        project.write_settings()
        return model._settings_key(load_study(project.folder))

    plain = key(**ADAM)
    for name, value in FIT.items():
        if name == "from":
            with pytest.raises(StudyError, match="from: checkpoint"):
                key(**ADAM, **{name: value})
        else:
            assert key(**ADAM | {name: value}) != plain, name


@pytest.mark.parametrize("kind", VALIDATIONS)
def test_a_setting_of_a_validation_is_in_its_key(project, monkeypatch, kind):
    monkeypatch.setattr(validation, "refresh_whole", lambda bench, name, key, produce: key)

    def key(asked):
        project.settings["validation"] = {kind: asked}
        project.write_settings()
        return validation.refresh(project.bench(), kind)

    plain = key({})
    assert key({}) == plain
    for name, value in VALIDATIONS[kind].items():
        assert key({name: value}) != plain, name


@pytest.mark.parametrize("where", sorted({*SHOWN.values()}))
def test_what_is_said_to_be_shown_is(where):
    file, _, name = where.partition("::")
    assert f"\ndef {name}" in (TESTS / file).read_text()
