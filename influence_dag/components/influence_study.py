"""The component: one `defs.yaml`, one study, one graph of assets."""

from pathlib import Path

import dagster as dg
from pydantic import BaseModel

from influence_dag.components.assets import study_definitions
from influence_dag.components.scaffold import InfluenceStudyScaffolder
from influence_dag.study import Study, StudySettings, study_name


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
        assert isinstance(attributes, StudySettings)
        values = context.resolution_context.resolve_value(attributes.model_dump(exclude_unset=True))
        return cls(StudySettings.model_validate(values))

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
        path = Path(str(context.path))
        folder = path.parent if path.is_file() else path
        root = Path(context.project_root)
        return study_definitions(Study(study_name(folder), self.settings, root, folder))
