"""The Dagster side: a `defs.yaml`, or settings in code, as a graph of assets; and its results."""

from influence_dag.components.from_code import study_assets, study_definitions
from influence_dag.components.influence_study import InfluenceStudy
from influence_dag.components.reading import StudyIOManager, StudyResource

__all__ = ["InfluenceStudy", "StudyIOManager", "StudyResource", "study_assets", "study_definitions"]
