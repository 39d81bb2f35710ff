"""The component: one `defs.yaml`, one study, one graph of assets."""

from pathlib import Path

import dagster as dg
from pydantic import BaseModel

from influence_dag.components.assets import study_definitions
from influence_dag.components.scaffold import InfluenceStudyScaffolder
from influence_dag.components.unusable import unusable
from influence_dag.errors import StudyError
from influence_dag.study.files import read_yaml
from influence_dag.study.study import Study, StudySettings, study_name


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
        return study_definitions(Study(name, self.settings, root, file.parent))


def _file_of(context: dg.ComponentLoadContext) -> Path:
    path = Path(str(context.path))
    return path if path.is_file() else path / "defs.yaml"
