"""A working folder for data of one's own: `influence-dag init iris --train … --target …`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.splits import load_splits
from influence_dag.datasets.standardising import unscaled
from influence_dag.errors import DataError, StudyError
from influence_dag.files import write_atomically
from influence_dag.starting.first_look import located, look_at_files
from influence_dag.starting.given import Plan, Start
from influence_dag.study.base import is_callable_name
from influence_dag.study.commented import commented
from influence_dag.study.data import DataSettings
from influence_dag.study.named_code import look_for
from influence_dag.study.places import project_around
from influence_dag.study.study import StudySettings, study_name

MOST_CLASSES = 20  # of whole numbers; more of them are amounts
EXACT_UP_TO = 5_000  # parameters
PERTURBED_UP_TO = 2**30  # bytes

HEAD = """\
# A study: influence-dag check {path}, then influence-dag materialize {path} --show
# "#name: value" is an option with its default; without its "#" it is set. "# …" explains.
type: influence_dag.components.InfluenceStudy
attributes:
"""
MODEL = '''"""The model of this study: {what}."""

from torch import nn


def build() -> nn.Module:
    """The untrained module; the pipeline fits it."""
    return {module}
'''
PROJECT = "# Marks this folder as a project: paths and modules of the study are found from here.\n"


def init(start: Start) -> str:
    """Write `defs.yaml`, with every option, and `model.py`; return what was found and comes next.

    Raises `DataError` or `StudyError` for what would not become a study. Nothing is overwritten,
    and what fails or is interrupted leaves nothing.
    """
    folder, plan = Path(os.path.abspath(start.folder)), Plan({})
    is_new = not folder.exists()
    try:
        return _init(start, folder, plan)
    except BaseException as error:
        for path in plan.written:
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # of one that is not there yet, or has something else in it
                folder.rmdir()
        if not isinstance(error, ValidationError):
            raise
        # of options that contradict one another, or are empty
        said = [each["msg"].removeprefix("Value error, ") for each in error.errors()]
        raise StudyError(f"{start.folder}: {'; '.join(said)}") from error


def _init(start: Start, folder: Path, plan: Plan) -> str:
    study_name(folder)
    if taken := [name for name in ("defs.yaml", "model.py") if (folder / name).exists()]:
        raise StudyError(f"{folder / taken[0]} exists; give a folder of another name")
    project = project_around(folder)
    package = _package(folder, project)
    _check_model(start, folder, project)
    look_at_files(start, folder, plan)
    train, test = _rows(start, plan, folder)
    settings = _settings(start, plan, train, test, package, own_project=project is None)
    if project is None:
        plan.files["pyproject.toml"] = PROJECT
    else:
        _make_package(folder, project, plan)
    lines = commented(StudySettings, settings, indent=1)
    plan.files["defs.yaml"] = HEAD.format(path=start.folder) + "\n".join(lines) + "\n"
    _write(folder, plan.files, plan)
    return "\n".join(
        [
            f"{start.folder}: {len(train)} training rows, {len(test)} test rows",
            *plan.told,
            "Next:",
            f"  influence-dag check {start.folder}",
            f"  influence-dag materialize {start.folder} --show",
        ]
    )


def _package(folder: Path, project: Path | None) -> str:
    """What the folder's modules are called: `assets.iris.` in a project, nothing outside one."""
    if project is None:
        return ""
    parts = folder.relative_to(project).parts
    if wrong := [part for part in parts if not part.isidentifier()]:
        raise StudyError(
            f"{folder} lies in the project {project}, whose Python modules it joins, and "
            f"{wrong[0]!r} is no name of a package; choose a path of letters, digits and _"
        )
    return "".join(f"{part}." for part in parts)


def _check_model(start: Start, folder: Path, project: Path | None) -> None:
    """Refuse a model that the study's stages could not import, and a checkpoint without one."""
    if start.checkpoint is not None:
        path = Path(start.checkpoint).expanduser().resolve()
        if not path.is_file():
            seen = f"{path} is no file" if path.exists() else f"no file {path}"
            raise StudyError(f"--checkpoint: {seen}; give the file that torch.save has written")
        if start.model is None:
            raise StudyError(
                f"--checkpoint {start.checkpoint} holds numbers, not the network: name the "
                "module:callable that builds it, --model"
            )
    if start.model is None:
        return
    if not is_callable_name(start.model):
        raise StudyError(f"--model {start.model}: write module:callable, for example cnn:build")
    file = Path(*start.model.partition(":")[0].split(".")).with_suffix(".py")
    if project is None and file.is_file() and not (folder / file).is_file():
        raise StudyError(
            f"--model {start.model}: {file} lies in {Path.cwd()}, which is no project, so that the "
            "study would not find it; an empty pyproject.toml there makes it one"
        )
    look_for(start.model, project or folder, "--model")
    from influence_dag.study.imported import import_callable
    from influence_dag.study.torch_modes import study_modes

    with study_modes():
        import_callable(start.model, project or folder, "--model")


def _make_package(folder: Path, project: Path, plan: Plan) -> None:
    """A folder without `__init__.py` would give way to a package of that name from elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, *folder.parents):
        if each == project:
            return
        if not (file := each / "__init__.py").exists():
            plan.written.append(file)
            file.touch()


def _rows(start: Start, plan: Plan, folder: Path) -> tuple[SplitRows, SplitRows]:
    """The rows as the study will read them, its own copies of tables being written first.

    What is wrong with a copy is told of the file that was given.
    """
    if any((folder / name).exists() for name in plan.copies):
        raise StudyError(f"{folder} has a train.csv or test.csv already; choose another folder")
    if plan.copies:
        _write(folder, plan.copies, plan)
    there = {which: _absolute(plan.data[which], folder) for which in ("train", "test")}
    root = project_around(folder) or Path.cwd()
    try:
        train, test = load_splits(DataSettings.model_validate(plan.data | there), root)
        if train.classes is not None and len(train.classes) == 1:
            raise DataError(
                f"{train.source}: every row has the label {train.classes[0]!r}, and one class is "
                "nothing to tell apart; give rows of two, or name a column of numbers: --target"
            )
        return train, test
    except DataError as error:
        if not plan.copies:
            raise
        said = str(error)
        for which in ("train", "test"):
            said = said.replace(there[which], getattr(start, which))
        raise DataError(said) from error


def _absolute(name: str, folder: Path) -> str:
    """The folder need not exist yet, and `..` of a folder that does not leads nowhere."""
    return name if is_callable_name(name) else os.path.normpath(folder / name)


def _settings(
    start: Start, plan: Plan, train: SplitRows, test: SplitRows, package: str, *, own_project: bool
) -> dict[str, Any]:
    loss, outputs = _task(plan, train)
    size = int(sum(np.prod(x.shape[1:]) for x in train.x.values()))
    parameters = (size + 1) * outputs
    method = "direct" if start.model is None and parameters <= EXACT_UP_TO else "ekfac"
    fitted: dict[str, Any] = {"fit": {"weight_decay": 0.01}}
    path = Path(start.checkpoint or "").expanduser().resolve()
    given = {"checkpoint": located(Path(os.path.abspath(start.folder)), path)}
    build = start.model or _write_model(plan, train, size, outputs, package, loss)
    settings: dict[str, Any] = {
        "data": plan.data,
        "model": {"build": build, "loss": loss, **(given if start.checkpoint else fitted)},
        "methods": {method: {}},
    }
    if start.checkpoint:
        settings["damping"] = "auto"
    if names := unscaled(train):
        plan.data["features"] = {"standardise": True}
        plan.told.append(f"  columns of very different scales ({', '.join(names)}): standardised")
    if method == "direct" and 8 * len(train) * len(test) * size <= PERTURBED_UP_TO:
        settings["perturbation"] = {"methods": [method]}
    return settings | ({"store": {"path": "store"}} if own_project else {})


def _task(plan: Plan, train: SplitRows) -> tuple[str, int]:
    """The loss and the number of outputs that fit the target."""
    y = train.y
    if train.classes is None and y.dtype.kind != "f" and y.ndim == 1:
        distinct = np.unique(y)
        whole = distinct.tolist() == list(range(len(distinct)))
        if 2 <= len(distinct) <= min(MOST_CLASSES, len(y) // 2):
            if not whole:
                plan.data["classes"] = [str(each) for each in distinct.tolist()]
            plan.told.append(f"  target: {len(distinct)} classes, {distinct.tolist()}")
            return "cross_entropy", len(distinct)
    if train.classes is not None:
        plan.told.append(f"  target: {len(train.classes)} classes, {', '.join(train.classes)}")
        return "cross_entropy", len(train.classes)
    plan.told.append("  target: numbers, so regression")
    return "mse", int(np.prod(y.shape[1:]))


def _write_model(
    plan: Plan, train: SplitRows, size: int, outputs: int, package: str, loss: str
) -> str:
    if len(train.x) > 1:
        raise StudyError(f"the rows have several inputs, {list(train.x)}; name a model: --model")
    layer = f"nn.Linear({size}, {outputs})"
    flat = next(iter(train.x.values())).ndim == 2
    kind = "softmax" if loss == "cross_entropy" else "linear"
    what = f"{kind} regression on {size} features"
    module = layer if flat else f"nn.Sequential(nn.Flatten(), {layer})"
    plan.files["model.py"] = MODEL.format(what=what, module=module)
    plan.told.append(f"  model: {what} (model.py)")
    return f"{package}model:build"


def _write(folder: Path, files: dict[str, str], plan: Plan) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            plan.written.append(folder / name)
            write_atomically(folder / name, content.encode("utf-8"))
    except OSError as error:
        raise StudyError(
            f"writing to {folder} failed: {error.strerror}; name a folder that can be written and "
            "has room"
        ) from error
