"""What scripts and modules set in torch for the whole process is no part of a study's numbers."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import MODEL, Project
from torch.overrides import _get_current_function_mode_stack

from influence_dag.curvature import Hessian, tracing
from influence_dag.errors import StudyError
from influence_dag.objective import twice_differentiable
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages.artifacts import Promise
from influence_dag.study import torch_modes
from influence_dag.study.code import put_on_path
from influence_dag.study.imported import import_callable, own_dtype
from influence_dag.study.torch_modes import kept_modes, plain_modes, study_modes

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
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
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


@pytest.mark.parametrize("place", ["module", "build"])
def test_types_that_one_studys_code_sets_are_not_those_of_the_next(tmp_path, wanted, place):
    lines = ["torch.set_default_dtype(torch.float64)", 'torch.set_default_device("cpu:0")']
    if place == "module":
        source = MODEL.replace("\n\n", "\n" + "\n".join(lines) + "\n\n", 1)
    else:
        source = MODEL.replace("build():\n", "build():\n" + "".join(f"    {x}\n" for x in lines))
    first = Project(tmp_path / "first", model=source, methods={"cg": None})
    first.refresh()
    first.results.lazy_perturbations("direct")["perturbation_influences"][:1, :1].compute()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert torch._C._len_torch_function_stack() == 0, "each call of torch would be slower"
    assert_same(numbers(Project(tmp_path / "next", **SETTINGS)), wanted)


def test_a_device_that_code_sets_costs_nothing_afterwards():
    with kept_modes():
        torch.set_default_device("meta")
    assert torch.ones(1).device == torch.device("cpu")
    assert not _get_current_function_mode_stack()


RELYING = """\
import torch
from torch import nn

{first}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4{dtype}), nn.Linear(4, 3{dtype})

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) @ torch.eye(4{dtype}))


def build():
    {inside}
    return Model()


def loss(output, target):
    return -(output.log_softmax(1) * torch.eye(3{dtype})[target]).sum(1)
"""
SETS = "torch.set_default_dtype(torch.float64)"


def everything(root: Path, places: dict[str, str]) -> dict[str, np.ndarray]:
    root.mkdir()
    (root / "sets.py").write_text(f"import torch\n\n{SETS}\n")
    sys.modules.pop("sets", None)
    put_on_path(root)  # as a run does
    source = RELYING.format(**{"first": "", "inside": "pass", **places})
    project = Project(root, model=source)
    project.write_settings(model={"loss": "tiny_model:loss"})
    project.refresh()
    project.write_settings(damping=0.1)
    project.refresh()  # by another workbench, of modules that are there already
    results = project.results
    found = {
        "influences": results.influences(method="direct"),
        "perturbation": results.perturbation("direct"),
        "lazy": results.lazy_perturbations("direct")["perturbation_influences"],
        "parameter influences": results.parameter_influences("cg"),
        "suspects": results.suspects(20, space="penultimate").combined,
    }
    found = {name: array.values for name, array in found.items()}
    assert torch.get_default_dtype() == torch.float32
    return found


@pytest.fixture(scope="module")
def with_types(tmp_path_factory):
    """A study whose code says the type of every tensor."""
    root = tmp_path_factory.mktemp("types") / "project"
    return everything(root, {"dtype": ", dtype=torch.float64"})


@pytest.mark.parametrize("places", [{"first": SETS}, {"inside": "import sets"}])
def test_a_study_that_relies_on_its_own_type_has_it_in_all_that_it_runs(
    tmp_path, with_types, places
):
    assert_same(everything(tmp_path / "project", {"dtype": "", **places}), with_types)


def test_a_module_that_two_studies_import_sets_the_type_for_both(tmp_path):
    """It is imported once."""
    (tmp_path / "common.py").write_text(f"import torch\n\n{SETS}\n")
    found = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "import torch\n\nimport common\n\nIT = torch.ones(1).dtype\n\n\n"
            "def build():\n    return torch.nn.Linear(3, 3)\n"
        )
        with study_modes():
            build = import_callable(f"{name}:build", tmp_path, "model.build")
            found += [build().weight.dtype, sys.modules[name].IT, torch.get_default_dtype()]
        assert torch.get_default_dtype() == torch.float32
    assert found == [torch.float64] * 6


ROWS = f"""\
import pandas as pd
import torch

{SETS}


def train():
    values = [0.5, 1.5, -1.0, 0.1] * 5
    columns = {{name: values for name in "abc"}}
    return pd.DataFrame({{**columns, "id": range(20), "label": [0, 1, 2, 1] * 5}})


def test():
    return train()[:4]
"""
SAYING = """\
import torch
from torch import nn

SEEN = set()


class Model(nn.Linear):
    def forward(self, x):
        SEEN.add(torch.get_default_dtype())
        return super().forward(x)


def build():
    return Model(3, 3)
"""


def test_a_type_that_code_of_rows_sets_is_not_that_of_the_model(tmp_path):
    """Else it would be in what is computed by the run that reads the rows, and in no later one."""
    (tmp_path / "rows_of_it.py").write_text(ROWS)
    put_on_path(tmp_path)
    project = Project(tmp_path, model=SAYING)
    project.write_settings(data={"train": "rows_of_it:train", "test": "rows_of_it:test"})
    project.refresh()
    seen = sys.modules["tiny_model"].SEEN
    assert seen == {torch.float32}


@pytest.fixture
def elsewhere():
    """`study_modes()` in another thread: called to come in, and called to leave."""
    with ThreadPoolExecutor(1) as other, ExitStack() as inside:
        yield (
            lambda: other.submit(inside.enter_context, study_modes()).result(),
            lambda: other.submit(inside.close).result(),
        )


def test_the_type_of_before_is_back_with_the_last_of_several_threads(elsewhere):
    """Each would set back what it found, which is the other's."""
    come, leave = elsewhere
    torch.set_default_dtype(torch.float64)
    with study_modes():
        come()
        assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_dtype() == torch.float32
    leave()
    assert torch.get_default_dtype() == torch.float64


def test_a_process_that_is_forked_has_the_threads_and_locks_of_none_but_itself(elsewhere):
    """A lock that another thread held when it was made would be held for ever."""
    come, leave = elsewhere
    come()
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    objective = Objective(module.double(), "cross_entropy")
    rows = Rows(torch.ones(4, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    with ThreadPoolExecutor(1) as third, ExitStack() as held:
        for lock in (
            torch_modes._asked,
            torch_modes._of_all_threads._lock,
            tracing._one_at_a_time,
            twice_differentiable._CHANGING,
        ):
            third.submit(held.enter_context, lock).result()
        if not (child := os.fork()):
            signal.alarm(20)
            torch.set_num_threads(1)
            with study_modes(torch.float64):
                Hessian(objective, rows).dense()
                os._exit(0)
        third.submit(held.close).result()
    leave()
    assert os.waitpid(child, 0)[1] == 0


def test_studies_of_two_types_are_not_computed_by_two_threads_at_once(elsewhere, tmp_path):
    """Torch has one for both: either would compute with the other's, in digits that nobody asks."""
    come, leave = elsewhere
    with study_modes(torch.float64):
        with study_modes(torch.float32):  # one thread knows what it does
            assert torch.get_default_dtype() == torch.float32
        with pytest.raises(StudyError, match=r"float32 here, .*float64 in a study"):
            come()
        assert torch.get_default_dtype() == torch.float64
    (tmp_path / "setting.py").write_text(f"import torch\n\n{SETS}\n\n\ndef build(): ...\n")
    come()
    with study_modes(), pytest.raises(StudyError, match=r"float64 here, .*float32 in a study"):
        import_callable("setting:build", tmp_path, "model.build")
    assert torch.get_default_dtype() == torch.float32
    leave()
    assert own_dtype(["setting:build"], tmp_path) == torch.float64
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_default_dtype(torch.float64),
    ],
    ids=["no_grad", "inference_mode", "autocast", "medium", "default_dtype"],
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
