from influence_dag.solvers.base import METHODS, Factorization, Method, Solution, build
from influence_dag.solvers.cg import ConjugateGradient
from influence_dag.solvers.direct import Direct
from influence_dag.solvers.nystroem import Nystroem

__all__ = [
    "METHODS",
    "ConjugateGradient",
    "Direct",
    "Factorization",
    "Method",
    "Nystroem",
    "Solution",
    "build",
]
