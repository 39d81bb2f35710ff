"""How suspicious a row's label is: what neighbours say, and several scores as one; numpy alone."""

from influence_dag.suspicion.neighbours import (
    NEIGHBOURS,
    UNLABELLED,
    Space,
    are_labelled,
    knn_shapley,
    knn_shapley_of_each,
    nearest,
    nearest_of_others,
    neighbour_disagreement,
)
from influence_dag.suspicion.noise import confident_joint, doubt, noise_matrix
from influence_dag.suspicion.rankings import SUSPICIONS, combined, combined_suspicion, normal_scores
from influence_dag.suspicion.votes import Evidence, Votes, log_shares, trusted, votes

__all__ = [
    "NEIGHBOURS",
    "SUSPICIONS",
    "UNLABELLED",
    "Evidence",
    "Space",
    "Votes",
    "are_labelled",
    "combined",
    "combined_suspicion",
    "confident_joint",
    "doubt",
    "knn_shapley",
    "knn_shapley_of_each",
    "log_shares",
    "nearest",
    "nearest_of_others",
    "neighbour_disagreement",
    "noise_matrix",
    "normal_scores",
    "trusted",
    "votes",
]
