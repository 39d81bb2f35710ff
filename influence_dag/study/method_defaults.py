"""What the settings of the methods are where nobody says: for studies and for solvers in code.

Plain values, since a call in memory needs no schema: pydantic takes as long to import as all else
that is ours.
"""

from typing import Literal


class DirectDefaults:
    on_indefinite: Literal["raise", "lu", "absolute"] = "raise"


class ConjugateGradientDefaults:
    rtol: float = 1e-6
    atol: float = 0.0
    maxiter: int | None = None
    preconditioner: Literal["none", "jacobi", "nystroem", "ekfac"] = "nystroem"
    rank: int = 100
    search: Literal["own", "shared"] = "own"
    seed: int = 0
    on_failure: Literal["raise", "warn"] = "raise"


class LissaDefaults:
    maxiter: int = 1000
    dampen: float = 0.0
    scale: float | None = None
    rtol: float = 1e-4
    batch_size: int | None = None
    seed: int = 0
    on_failure: Literal["raise", "warn"] = "raise"


class ArnoldiDefaults:
    rank: int = 50
    tol: float = 1e-6
    complement: Literal["drop", "damping"] = "drop"
    max_products: int | None = None
    on_device: bool = False
    seed: int = 0
    on_failure: Literal["raise", "warn"] = "raise"


class NystroemDefaults:
    rank: int = 100
    seed: int = 0
    power_iterations: int = 1


class KroneckerDefaults:
    fisher: Literal["exact", "sampled", "empirical"] = "exact"
    seed: int = 0


def check_rank_is_read(preconditioner: str, rank: int) -> None:
    """A `ValueError` for a rank of what has none: read and ignored it would make other keys."""
    if preconditioner in ("none", "ekfac") and rank != ConjugateGradientDefaults.rank:
        raise ValueError(
            f"rank {rank} is of the preconditioners nystroem and jacobi, and {preconditioner} has "
            "none; leave it out"
        )


def check_seed_is_read(fisher: str, seed: int) -> None:
    """A `ValueError` for a seed of what draws nothing."""
    if fisher != "sampled" and seed != KroneckerDefaults.seed:
        raise ValueError(
            f"seed {seed} is of labels that are drawn, and fisher: {fisher} draws none; add "
            "fisher: sampled or leave it out"
        )
