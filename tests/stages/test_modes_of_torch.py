"""What scripts and modules set in torch for the whole process is no part of a study's numbers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_project import MODEL, Project

from influence_dag.stages.artifacts import Promise
from influence_dag.study.torch_modes import plain_modes

SETTINGS = {
    "methods": {"direct": {"curvature": "gauss_newton"}, "ekfac": {}},
    "perturbation": {"methods": ["direct"]},
    "compute": {"dtype": "float32"},
}
LINES = """\
torch.set_grad_enabled(False)
torch.set_float32_matmul_precision("medium")
torch.backends.mkldnn.conv.fp32_precision = "bf16"
"""


def numbers(project: Project) -> dict[str, np.ndarray]:
    project.refresh()
    found = {"perturbation": project.results.perturbation("direct").values}
    for method in SETTINGS["methods"]:
        found[method] = project.results.influences(method=method).values
        found[f"factors of {method}"] = project.results.influence_factors(method).values
    return found


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    return numbers(Project(tmp_path_factory.mktemp("plain"), **SETTINGS))


@pytest.fixture(autouse=True)
def _as_before():
    yield
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.conv.fp32_precision = "none"


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


@pytest.mark.parametrize("place", ["module", "build"])
def test_what_a_models_code_sets_is_not_computed_with(tmp_path, wanted, place):
    if place == "module":
        source = MODEL.replace("\n\n", f"\n{LINES}\n", 1)
    else:
        body = "".join(f"    {line}\n" for line in LINES.splitlines())
        source = MODEL.replace("def build():\n", f"def build():\n{body}")
    assert_same(numbers(Project(tmp_path, model=source, **SETTINGS)), wanted)
    assert torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.set_float32_matmul_precision("medium"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "medium"],
)
def test_modes_around_a_refresh_change_nothing(tmp_path, wanted, mode):
    project = Project(tmp_path, **SETTINGS)
    with mode() or torch.enable_grad():
        found = numbers(project)
    assert_same(found, wanted)


def test_a_check_computes_in_all_digits(tmp_path):
    torch.set_float32_matmul_precision("medium")
    promise = Promise("digits", f"{__name__}:_precision", (), "what torch rounds to")
    assert promise.outcome(Project(tmp_path, **SETTINGS).bench()) == "highest"


def _precision(bench):
    return torch.get_float32_matmul_precision()


def test_who_leaves_first_changes_nothing_for_those_still_inside():
    """Of two threads the first to leave brought back what a script had set for the process."""
    torch.set_float32_matmul_precision("medium")
    first, second = plain_modes(), plain_modes()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_torch_that_another_thread_imports_is_waited_for():
    """A study that was refreshed in two threads of a fresh process met half of it."""
    script = """
import sys, threading
from influence_dag.study.torch_modes import plain_modes
threading.Thread(target=lambda: __import__("torch")).start()
while "torch" not in sys.modules:
    pass
with plain_modes():
    assert sys.modules["torch"].is_grad_enabled()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
