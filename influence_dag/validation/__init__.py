"""Refits that show whether influences can be trusted, on any model that can be fitted again.

For a stored study as it is, `influence_dag.suspects` names the rows most likely mislabelled.
"""

from influence_dag.validation.candidates import exact_candidates
from influence_dag.validation.datamodels import (
    Datamodels,
    Score,
    SubsetFits,
    datamodels,
    draw_subsets,
    fit_subsets,
    initial_params,
    linear_datamodelling_score,
)
from influence_dag.validation.feature_moves import FeatureMoves, feature_moves
from influence_dag.validation.label_errors import LabelErrors, label_errors, self_influences
from influence_dag.validation.leave_one_out import LeaveOneOut, leave_one_out
from influence_dag.validation.parameter_changes import ParameterChanges, parameter_changes
from influence_dag.validation.refits import Refits, leaving_out, refit
from influence_dag.validation.training_attack import (
    TrainingAttack,
    most_exposed_row,
    training_attack,
)

__all__ = [
    "Datamodels",
    "FeatureMoves",
    "LabelErrors",
    "LeaveOneOut",
    "ParameterChanges",
    "Refits",
    "Score",
    "SubsetFits",
    "TrainingAttack",
    "datamodels",
    "draw_subsets",
    "exact_candidates",
    "feature_moves",
    "fit_subsets",
    "initial_params",
    "label_errors",
    "leave_one_out",
    "leaving_out",
    "linear_datamodelling_score",
    "most_exposed_row",
    "parameter_changes",
    "refit",
    "self_influences",
    "training_attack",
]
