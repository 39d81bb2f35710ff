"""Modules that lie elsewhere now are found by their earlier names."""

import importlib
import sys
import warnings

import pytest

from influence_dag.study.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_earlier_name_is_the_module_of_the_new_one(old):
    sys.modules.pop(f"influence_dag.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"{old} is influence_dag.{MOVED[old]} now"):
        found = importlib.import_module(f"influence_dag.{old}")
    assert found is importlib.import_module(f"influence_dag.{MOVED[old]}")
    assert found.__spec__.name == f"influence_dag.{MOVED[old]}"


def test_what_lay_in_a_folder_that_moved_is_found():
    tables = importlib.import_module("influence_dag.datasets.sources.tables")
    with pytest.warns(
        DeprecationWarning, match=r"sources\.tables is .*datasets\.sources\.tables now"
    ):
        assert importlib.import_module("influence_dag.sources.tables") is tables


EARLIER_LINES = """
from influence_dag.datasets import load_split, load_splits
from influence_dag.functional import TorchTwiceDifferentiable, compute_influences
from influence_dag.gradients import gradient_layout, per_sample_gradients
from influence_dag.influence import influences, perturbation_influences
from influence_dag.losses import cross_entropy, reduced_loss
from influence_dag.objective import Objective, Rows, per_sample_loss
from influence_dag.query import StudyResults, open_study
from influence_dag.running import load_study, materialize
from influence_dag.study import FitSettings, Study, StudySettings
"""


def test_modules_that_became_rooms_have_the_names_that_they_had():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(EARLIER_LINES, {})


def test_a_name_that_never_was_is_told_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'influence_dag\.nothing'"):
        importlib.import_module("influence_dag.nothing")
