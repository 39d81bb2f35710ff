"""Values that a method's settings cannot have are refused where the method is made."""

from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from influence_dag.solvers import METHODS, Arnoldi, ConjugateGradient, LiSSA, build
from influence_dag.study.methods import MethodsSettings

OURS = ("direct", "cg", "lissa", "arnoldi", "nystroem", "ekfac", "kfac")
NUMBERS = ["rtol", "atol", "maxiter", "rank", "seed", "power_iterations", "dampen", "scale"]
NUMBERS += ["batch_size", "tol", "max_products", "damping", "rounding"]
NO_NUMBERS = (-1, float("nan"), float("inf"), "3", True, [3])
SETTINGS = [(name, field.name) for name in OURS for field in fields(METHODS[name])]
OF_NUMBERS = [(name, field) for name, field in SETTINGS if field in NUMBERS]
OF_WORDS = [(name, field) for name, field in SETTINGS if field not in (*NUMBERS, "distribution")]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(("method", "field"), OF_NUMBERS)
def test_what_is_no_number_of_the_kind_is_refused(method, field, value):
    with pytest.raises(ValueError, match=rf"{field}=.*; a .* is wanted"):
        build(method, {field: value})


@pytest.mark.parametrize(("method", "field"), OF_WORDS)
def test_another_word_is_refused_with_those_there_are(method, field):
    known = ", ".join(map(str, get_args(get_type_hints(METHODS[method])[field])))
    wanted = f" is unknown; choose one of {known}$" if known else "; True or False is wanted"
    with pytest.raises(ValueError, match=f"^{field}='RAISE'{wanted}"):
        build(method, {field: "RAISE"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("rank", 2.5), ("max_products", 0), ("seed", 2**32), ("seed", 0.5)],
)
def test_numbers_beyond_a_setting_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}; a whole number "):
        Arnoldi(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("scale", 0.0), ("dampen", 1.0), ("batch_size", 0)])
def test_what_no_series_can_have_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}; "):
        LiSSA(**{field: value})


@pytest.mark.parametrize("steps", [1e3, np.int16(1000), np.float32(1000), torch.tensor(1000)])
def test_whole_numbers_may_be_written_otherwise(steps):
    maxiter = LiSSA(maxiter=steps).maxiter
    assert maxiter == 1000
    assert type(maxiter) is int


def test_a_tolerance_may_be_zero():
    assert ConjugateGradient(rtol=0, atol=1e-6).rtol == 0


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("cg", {"preconditioner": "none", "rank": 5}, "rank 5 .* none has none; leave it out"),
        ("cg", {"preconditioner": "ekfac", "rank": 5}, "rank 5 .* ekfac has none; leave it out"),
        ("ekfac", {"seed": 1}, "seed 1 .* fisher: exact draws none"),
        ("kfac", {"fisher": "empirical", "seed": 1}, "seed 1 .* fisher: empirical draws none"),
        ("lissa", {"seed": 1}, "without batch_size none is drawn"),
    ],
)
def test_what_would_be_read_and_ignored_is_refused(method, settings, words):
    """Of a study it would be another key for the same numbers; in memory a loader has batches."""
    if method != "lissa":
        with pytest.raises(ValueError, match=words):
            build(method, settings)
    with pytest.raises(ValueError, match=words):
        MethodsSettings.model_validate({method: settings})
