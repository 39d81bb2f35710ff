"""Edited code of a project is seen wherever it stands, and runs instead of what was imported."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import Project

import influence_dag as idag
from influence_dag.errors import StudyError
from influence_dag.objective.modules import import_callable
from influence_dag.study.code import code_hashes, code_key
from influence_dag.study.module_files import is_of_project

FILES = {
    "things/__init__.py": "",
    "things/model.py": "import sys\nimport os\nfrom .layers import one\nfrom things import two\n",
    "things/layers.py": "from things.deep.inner import VALUE\n\n\ndef one():\n    return VALUE\n",
    "things/two.py": "def late():\n    import helper\n\n    return helper\n",
    "things/deep/inner.py": "VALUE = 1\n",
    "helper.py": "import things.model  # a circle is no trouble\n",
    "bystander.py": "",
    "sys.py": "shadows = 'nothing: it is built into Python'\n",
    "os.py": "shadows = 'nothing: it is frozen into Python'\n",
}
ROOT = Path(__file__).parents[1]
NAMES = ("things", "helper", "bystander")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_all(tmp_path, FILES)
    return tmp_path


def write_all(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def one(root: Path) -> object:
    return import_callable("things.model:one", root, "model.build")()


def test_a_callable_is_made_of_all_that_its_module_imports_from_the_project(root):
    files = set(code_hashes("things.model", root))
    wanted = {"things", "things.model", "things.layers", "things.two", "things.deep.inner"}
    assert files == {*wanted, "helper"}


@pytest.mark.parametrize("file", sorted({*FILES} - {"bystander.py", "sys.py", "os.py"}))
def test_an_edit_anywhere_in_it_is_another_key(root, file):
    before = code_key("things.model", root)
    (root / file).write_text(FILES[file] + "# edited\n")
    assert code_key("things.model", root) != before


@pytest.mark.parametrize("file", ["bystander.py", "sys.py", "os.py", "things/unrelated.py"])
def test_an_edit_elsewhere_is_not(root, file):
    before = code_key("things.model", root)
    (root / file).write_text("# edited\n")
    assert code_key("things.model", root) == before


def test_modules_in_a_folder_on_the_path_belong_to_the_project(root, monkeypatch):
    write_all(root, {"src/helper.py": "import bystander\n"})
    (root / "helper.py").unlink()
    assert "helper" not in code_hashes("things.model", root)
    monkeypatch.syspath_prepend(str(root / "src"))
    assert {"helper", "bystander"} <= set(code_hashes("things.model", root))


def test_installed_modules_count_by_their_own_file(root):
    assert code_hashes("torch.nn", root) == {}
    assert code_key("torch.nn", root) != code_key("torch.optim", root)


def test_what_was_edited_is_imported_again_though_the_edit_keeps_size_and_second(root):
    for value in (1, 2, 3):
        (root / "things/deep/inner.py").write_text(f"VALUE = {value}\n")
        assert one(root) == value
    assert one(root) == 3


def test_a_file_with_the_name_of_a_module_of_pythons_own_is_refused(root):
    """`import trace` would find either, by what the process has imported before."""
    write_all(root, {"trace.py": "VALUE = 1\n", "helper.py": "import trace\n"})
    with pytest.raises(StudyError, match=r"trace\.py has the name of trace, .*; rename the file"):
        one(root)


def test_what_is_gone_is_imported_no_longer(root):
    """Another process would find it no more, and nothing of it is in the key of what is there."""
    assert one(root) == 1
    (root / "things/deep/inner.py").unlink()
    with pytest.raises(StudyError, match=r"needs 'things\.deep\.inner'"):
        one(root)


def test_what_comes_and_goes_is_tried_anew(root):
    """As a fast form beside a slow one: keys are of what is there, and so is what runs."""
    tried = "try:\n    import bystander as fast\nexcept ImportError:\n    fast = None\n"
    (root / "things/two.py").write_text(f"{tried}\n\ndef two():\n    return fast and fast.VALUE\n")

    def two() -> object:
        return import_callable("things.two:two", root, "model.build")()

    for value in (1, None, 2, None):
        (root / "bystander.py").unlink(missing_ok=True)
        if value is not None:
            (root / "bystander.py").write_text(f"VALUE = {value}\n")
        assert two() == value
        assert one(root) == 1


def test_what_was_not_edited_stays_the_same_object(root):
    first = import_callable("things.model:one", root, "model.build")
    assert import_callable("things.model:one", root, "model.build") is first


def test_code_that_somebody_imported_before_an_edit_does_not_run(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root))
    import_module("things.model")
    (root / "things/deep/inner.py").write_text("VALUE = 7\n")
    assert one(root) == 7


COUNTED = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
import bystander
import things.model
from influence_dag.objective.modules import import_callable

(Path.cwd() / "lone.py").write_text("# edited")
for module in (things.model, bystander):
    again = import_callable(f"{module.__name__}:one", Path.cwd(), "model.build")
    print(module.__name__, again is module.one)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the start of a process")
def test_what_a_script_imported_is_used_as_it_is_unless_it_may_have_been_edited(root):
    """Otherwise its classes would be others than the script's own."""
    (root / "sys.py").unlink()
    write_all(root, {"bystander.py": "import lone\n\n\ndef one(): ...\n", "lone.py": ""})
    time.sleep(1.2)  # the files have to be older than the process
    script = [sys.executable, "-c", COUNTED]
    said = subprocess.run(script, cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["things.model True", "bystander False"]


def test_modules_of_the_same_name_are_each_projects_own(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_all(other, FILES | {"things/deep/inner.py": "VALUE = 2\n"})
    assert [one(folder) for folder in (root, other, root)] == [1, 2, 1]


# In a study

SPLIT_MODEL = """\
from torch import nn

from tiny_layers import Activation


def build():
    return nn.Sequential(Activation(), nn.Linear(3, 3))
"""
LAYERS = """\
import torch
from torch import nn


class Activation(nn.Module):
    def forward(self, x):
        return torch.tanh({scale} * x)


def loss(output, target):
    return {scale} * nn.functional.cross_entropy(output, target, reduction="none")


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, row):
        x = torch.arange(3.0) * {scale} + torch.sin(torch.tensor(7.0 * row))
        return x.double(), row % 3
"""


@pytest.fixture
def split_project(tmp_path: Path) -> Iterator[Project]:
    """A study whose model imports its activation from a module beside it."""
    write_all(tmp_path, {"tiny_layers.py": LAYERS.format(scale="1.0")})
    yield Project(tmp_path, model=SPLIT_MODEL, methods={"cg": None}, perturbation=None)
    sys.modules.pop("tiny_layers", None)


def from_nothing(project: Project, root: Path) -> Project:
    other = project.copy(root)
    for path in sorted(other.store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    other.refresh()
    return other


def test_edited_layers_and_losses_are_computed_with(split_project, tmp_path_factory):
    split_project.write_settings(model={"loss": "tiny_layers:loss"})
    split_project.refresh()
    write_all(split_project.root, {"tiny_layers.py": LAYERS.format(scale="2.0")})
    assert idag.status(split_project.folder)["model"].reasons == {"inputs changed": 1}
    updates = split_project.refresh()
    assert [name for name, update in updates.items() if update.is_current] == ["dataset"]
    wanted = from_nothing(split_project, tmp_path_factory.mktemp("scratch"))
    np.testing.assert_allclose(
        split_project.results["direct"].influences, wanted.results["direct"].influences, rtol=1e-9
    )


def test_an_edited_measurement_is_computed_with(split_project):
    write_all(split_project.root, {"tiny_margin.py": "from tiny_layers import loss as margin\n"})
    split_project.write_settings(model={"measurement": "tiny_margin:margin"})
    split_project.refresh()
    before = split_project.results["direct"].influences.values
    write_all(split_project.root, {"tiny_margin.py": MARGIN})
    updates = split_project.refresh()
    assert not updates["direct/influence_factors"].is_current
    assert updates["hessian"].is_current
    np.testing.assert_allclose(split_project.results["direct"].influences, -before, rtol=1e-9)


MARGIN = """\
from tiny_layers import loss


def margin(output, target):
    return -loss(output, target)
"""


def test_edited_rows_of_a_callable_are_read(split_project):
    data = {"train": "tiny_layers:Rows", "id": None, "target": None}
    split_project.write_settings(data=data)
    (split_project.root / "test.csv").unlink()
    split_project.write_settings(data={"test": "tiny_layers:Rows"})
    split_project.refresh()
    before = split_project.results.open("dataset").train_x.values
    write_all(split_project.root, {"tiny_layers.py": LAYERS.format(scale="2.0")})
    assert split_project.refresh()["dataset"].info["train"]["changed"] == 12
    shift = split_project.results.open("dataset").train_x.values - before
    np.testing.assert_allclose(shift, torch.arange(3.0).expand(12, 3), atol=1e-6)


# Stars, and code from outside the project


STARRED = {
    "things/__init__.py": "__all__ = ['named', 'a_function']\n\n\ndef a_function():\n    pass\n",
    "things/named.py": "VALUE = 1\n",
    "things/other.py": "",
    "things/inner/__init__.py": "",
    "helper.py": "from things import *\n",
}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (STARRED["things/__init__.py"], {"named"}),
        ("__all__ = ('named', 'other')\n", {"named", "other"}),
        ("__all__: list[str] = ['other']\n", {"other"}),
        ("__all__ = ['named']\n__all__ += ['inner']\n", {"named", "inner"}),
        ("__all__ = ['named']\n__all__.append('other')\n", {"named", "other", "inner"}),
        ("__all__ = [n for n in ('named',)]\n", {"named", "other", "inner"}),
        ("from .other import *\n", {"other"}),
        ("", set()),
    ],
    ids=map(str, range(8)),
)
def test_a_star_imports_what_all_names(tmp_path, text, seen):
    write_all(tmp_path, STARRED | {"things/__init__.py": text})
    found = set(code_hashes("helper", tmp_path))
    assert found == {"helper", "things", *(f"things.{name}" for name in seen)}
    code = "import sys, helper; print(*(n for n in sys.modules if n.startswith('things.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= found, "what Python imports is seen"


BY_NAME = [
    "import importlib\n\nmodule = importlib.import_module('things.layers')\n",
    "import importlib\n\nmodule = importlib.import_module(name='things.layers')\n",
    "from importlib import import_module as load\n\nmodule = load('things.layers')\n",
    "module = __import__('things.layers')\n",
    "def late():\n    from importlib import import_module\n\n"
    "    return import_module('.layers', __package__)\n",
    "import importlib\n\nmodule = importlib.import_module('..layers', 'things.deep')\n",
    "import importlib\n\nmodule = importlib.import_module('..layers', package='things.deep')\n",
    "module = __import__('things', fromlist=['layers']).layers\n",
    "module = __import__('', globals(), locals(), ['layers'], 1).layers\n",
]


@pytest.mark.parametrize("text", BY_NAME, ids=map(str, range(len(BY_NAME))))
def test_a_module_whose_name_is_written_out_in_a_call_is_seen(root, text):
    (root / "things/two.py").write_text(text)
    assert "things.layers" in code_hashes("things.two", root)


@pytest.mark.parametrize("text", ["import_module('__future__')", "import_module(name)", "f('a b')"])
def test_other_calls_import_nothing_of_the_project(root, text):
    (root / "bystander.py").write_text(f"from importlib import import_module\n\n{text}\n")
    assert set(code_hashes("bystander", root)) == {"bystander"}


@pytest.mark.parametrize("ending", [EXTENSION_SUFFIXES[0], ".pyc"])
def test_compiled_modules_count_by_their_file(tmp_path, ending):
    keys = []
    for folder, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        write_all(tmp_path / folder, {"helper.py": "import things.native\n", "things/two.py": ""})
        (tmp_path / folder / f"things/native{ending}").write_bytes(content)
        keys.append(code_key("helper", tmp_path / folder))
    assert keys[0] == keys[1] != keys[2]


def test_a_compiled_module_hides_a_source_of_its_name(root):
    (root / f"helper{EXTENSION_SUFFIXES[0]}").write_bytes(b"built of another helper.py")
    assert "helper" not in code_hashes("things.model", root)


class Editable:
    """A finder as those that editable installs put on `sys.meta_path`."""

    def __init__(self, name: str, file: Path):
        self.name, self.file = name, file

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, self.file) if name == self.name else None


@pytest.mark.parametrize("how", ["on the path", "editable"])
def test_code_of_one_s_own_outside_the_project_counts_by_file(
    root, tmp_path_factory, monkeypatch, how
):
    file = tmp_path_factory.mktemp("outside") / "bystander_elsewhere.py"
    file.write_text("VALUE = 1\n")
    (root / "helper.py").write_text(
        "import bystander_elsewhere\n\n\ndef value():\n    return bystander_elsewhere.VALUE\n"
    )
    if how == "on the path":
        monkeypatch.syspath_prepend(str(file.parent))
    else:
        finder = Editable("bystander_elsewhere", file)
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    assert import_callable("helper:value", root, "x")() == 1
    before = code_key("helper", root)
    file.write_text("VALUE = 22\n")
    assert code_key("helper", root) != before
    assert import_callable("helper:value", root, "x")() == 22
    assert is_of_project("helper", root)
    assert not is_of_project("bystander_elsewhere", root)
    sys.modules.pop("bystander_elsewhere")


def install(site: Path, version: str) -> None:
    """A distribution as pip leaves it, of one module."""
    write_all(site, {"bystander_lib.py": f"VERSION = {version!r}\n"})
    about = f"Metadata-Version: 2.1\nName: bystander-lib\nVersion: {version}\n"
    info = f"bystander_lib-{version}.dist-info"
    record = f"bystander_lib.py,,\n{info}/METADATA,,\n{info}/RECORD,,\n"
    write_all(site, {f"{info}/METADATA": about, f"{info}/RECORD": record})


def test_installed_distributions_count_by_version(root, tmp_path_factory):
    """Each in a process of its own, as another version would be met."""
    (root / "helper.py").write_text("def late():\n    import bystander_lib\n")
    code = (
        "import sys, pathlib; from influence_dag.study.code import code_key\n"
        "print(code_key('helper', pathlib.Path(sys.argv[1])))"
    )
    keys = []
    for version in ("1.0", "1.0", "1.1"):
        site = tmp_path_factory.mktemp("env") / "site-packages"
        install(site, version)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
        done = subprocess.run(
            [sys.executable, "-c", code, str(root)],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        keys.append(done.stdout)
    assert keys[0] == keys[1] != keys[2]


LATE = """\
from torch import nn


def build():
    from tiny_layers import NAME

    assert NAME == {!r}
    return nn.Linear(3, 3)
"""


def test_what_is_imported_when_code_is_called_is_its_own_project_s(tmp_path):
    """Also of a project that was run before another one with modules of the same names."""
    projects = []
    for name in ("one", "other"):
        model = LATE.format(name)
        project = Project(tmp_path / name, model=model, methods={"cg": None}, perturbation=None)
        (project.root / "tiny_layers.py").write_text(f"NAME = {name!r}\n")
        projects.append(project)
    for project in projects:
        project.materialize()
    projects[0].edit("train", 3, height=2.5)
    projects[0].materialize()
