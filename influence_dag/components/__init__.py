"""The Dagster side: the component that turns a `defs.yaml` into a graph of assets."""

from influence_dag.components.influence_study import InfluenceStudy

__all__ = ["InfluenceStudy"]
