"""Methods for `(H + λI)⁻¹ g`: exact, iterative, low rank, Kronecker-factored."""

from influence_dag.solvers.arnoldi import Arnoldi
from influence_dag.solvers.base import METHODS, Factorization, Method, Solution, build
from influence_dag.solvers.blocks import Blockwise, parameter_blocks
from influence_dag.solvers.cg import ConjugateGradient
from influence_dag.solvers.direct import Direct
from influence_dag.solvers.ekfac import EKFAC, KFAC
from influence_dag.solvers.identity import Identity
from influence_dag.solvers.lissa import LiSSA
from influence_dag.solvers.nystroem import Nystroem

__all__ = [
    "EKFAC",
    "KFAC",
    "METHODS",
    "Arnoldi",
    "Blockwise",
    "ConjugateGradient",
    "Direct",
    "Factorization",
    "Identity",
    "LiSSA",
    "Method",
    "Nystroem",
    "Solution",
    "build",
    "parameter_blocks",
]
