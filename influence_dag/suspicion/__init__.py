"""How suspicious a row's label is: what neighbours say, and several scores as one; numpy alone."""

from influence_dag.suspicion.neighbours import (
    NEIGHBOURS,
    knn_shapley,
    knn_shapley_of_each,
    nearest,
    neighbour_disagreement,
)
from influence_dag.suspicion.rankings import (
    SUSPICIONS,
    combined,
    combined_suspicion,
    normal_scores,
)

__all__ = [
    "NEIGHBOURS",
    "SUSPICIONS",
    "combined",
    "combined_suspicion",
    "knn_shapley",
    "knn_shapley_of_each",
    "nearest",
    "neighbour_disagreement",
    "normal_scores",
]
