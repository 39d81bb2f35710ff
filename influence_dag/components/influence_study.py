"""The component: one `defs.yaml`, one study, one graph of assets."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import dagster as dg
from dagster.components import Scaffolder, ScaffoldRequest
from dagster.components.component_scaffolding import scaffold_component
from pydantic import BaseModel

from influence_dag.components.assets import study_definitions
from influence_dag.components.keys import warn_of_twins
from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.study.files import read_yaml
from influence_dag.study.study import Study, StudySettings, study_name, usable_name
from influence_dag.texts import encodable

GROUP = "studies_not_loaded"
_TYPE = re.compile(r"^\s*(- )?type:.*\bInfluenceStudy\b", re.MULTILINE)
_MODEL = '''"""The model of this study."""

from torch import nn


def build() -> nn.Module:
    """The untrained module; the pipeline fits it."""
    return nn.Sequential(nn.Flatten(), nn.Linear({features}, {outputs}))
'''


class InfluenceStudyScaffolder(Scaffolder):
    """A `defs.yaml` with every choice that has no default, and a `model.py` beside it."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        name = request.target_path.name
        module = ".".join((*request.target_path.parts[-2:-1], name, "model"))
        (request.target_path / "model.py").write_text(_MODEL.format(features=64, outputs=10))
        scaffold_component(
            request,
            {
                "data": {
                    "train": f"data/{name}/train.csv",
                    "test": f"data/{name}/test.csv",
                    "id": "id",
                    "target": "label",
                },
                "model": {
                    "build": f"{module}:build",
                    "loss": "cross_entropy",
                    "fit": {"optimizer": "lbfgs", "weight_decay": 0.01},
                },
                "damping": 0.01,
                "methods": {"direct": {}},
            },
        )


@dg.scaffold_with(InfluenceStudyScaffolder)
class InfluenceStudy(dg.Component):
    """Influence functions of a PyTorch model, every step a persisted artifact.

    data → model → per-sample gradients → curvature → influence factors → influences and
    perturbation influences. The folder's name is the study's name.
    """

    def __init__(self, settings: StudySettings):
        self.settings = settings

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return StudySettings

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "InfluenceStudy":
        """The study with its settings as they are written: no templates are filled in."""
        assert isinstance(attributes, StudySettings)
        return cls(attributes)

    @staticmethod
    @dg.template_var
    def checked(context: dg.ComponentLoadContext) -> bool:
        """Check the file as the command line does.

        Dagster asks for a component's template variables before all else: before it imports a
        module of others, and before it fills templates in what it does with assets afterwards.
        """
        path = _file_of(context)
        if path.is_file():
            read_yaml(path)
        return True

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        return dg.ComponentTypeSpec(
            description=(
                "Influence functions of a PyTorch model as persisted, incrementally refreshed "
                "assets"
            ),
            tags=["torch", "zarr", "xarray"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        file, root = _file_of(context), Path(context.project_root)
        try:
            name = study_name(file.parent)
        except StudyError as error:
            return unusable(file.parent.name, error)
        try:
            _check_alone(file, root, Path(context.defs_module_path))
        except StudyError as error:
            return unusable(_shown(file.parent, root), error)
        study = Study(name, self.settings, root, file.parent)
        warn_of_twins(study, _shown(file, root))
        return study_definitions(study)


def _file_of(context: dg.ComponentLoadContext) -> Path:
    path = Path(str(context.path))
    return path if path.is_file() else path / "defs.yaml"


def _check_alone(file: Path, root: Path, definitions: Path) -> None:
    """A `StudyError` for a study whose name another one among the definitions has."""
    own = file.resolve()
    for other in sorted(definitions.rglob(f"{file.parent.name}/defs.yaml")):
        if other.resolve() != own and _is_study(other):
            raise StudyError(
                f"{_shown(file, root)} and {_shown(other, root)} are two studies of one name, by "
                "which Dagster knows a study's assets, checks and jobs: rename one of the folders"
            )


def _is_study(file: Path) -> bool:
    with suppress(OSError):  # nobody's to read, or a link to nothing
        return _TYPE.search(file.read_text(errors="replace")) is not None
    return False


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def unusable(folder: str, error: InfluenceDagError) -> dg.Definitions:
    """An asset that nothing materialises, which says in the UI and in the log what is wrong.

    An error here would take all other studies of the code location with it.
    """
    shown, said = encodable(folder), encodable(str(error))
    logging.getLogger("dagster").warning("%s: not loaded: %s", shown, said)
    own = f"{usable_name(folder)}_{crc32(os.fsencode(folder)):08x}"  # of two that are alike, too
    spec = dg.AssetSpec(
        [GROUP, own],
        group_name=GROUP,
        description=f"The study in the folder {shown} was not loaded. {said}",
        kinds={"error"},
    )
    return dg.Definitions(assets=[spec])
