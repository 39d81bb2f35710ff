"""A study on a CUDA device has the numbers of the processor; skipped where there is none."""

import pytest
import torch
from tiny_answers import assert_close
from tiny_project import Project

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

METHODS = {"direct": {}, "cg": {"rtol": 1e-10, "rank": 8}, "ekfac": {}, "kfac": {}}
FORMS = [{}, {"reduce": {"over": "feature", "by": "l2"}}, {"pairs": "top-5"}]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    projects = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path_factory.mktemp(device)
        projects[device] = Project(
            folder, methods=METHODS, compute={"device": device, "dtype": "float64"}
        )
        projects[device].refresh()
    return projects


@pytest.mark.parametrize("method", METHODS)
def test_influences_are_those_of_the_processor(sides, method):
    mine, theirs = (sides[device].results[method].influences.values for device in ("cuda", "cpu"))
    assert_close(mine, theirs, 1e-8)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_perturbations_are_those_of_the_processor(sides, form):
    for project in sides.values():
        project.write_settings(perturbation={"reduce": None, "pairs": None, **form})
        project.refresh()
    mine, theirs = (sides[device].results.perturbation("direct") for device in ("cuda", "cpu"))
    assert_close(mine, theirs.values, 1e-8)


def test_convolutions_are_in_float32_where_float32_is_asked_for(sides):
    sides["cuda"].bench().device  # noqa: B018
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
