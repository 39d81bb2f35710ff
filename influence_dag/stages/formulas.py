"""Versions of the stages' formulas. No Dagster, no torch."""

# Raise a stage's when stored values would come out differently: they are computed again, and
# Dagster sees another version of the code.
FORMULAS = {
    "dataset": 5,
    "model": 3,
    "gradients": 2,
    "matrices": 3,
    "curvature": 3,
    "factors": 4,
    "influences": 1,
    "perturbation": 3,
    "summary": 6,
    "validation": 10,
    "report": 6,
}
