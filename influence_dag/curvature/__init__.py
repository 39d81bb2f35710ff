"""Hessian and Gauss–Newton: as products with vectors, as matrices, as Kronecker factors."""

from influence_dag.curvature.gauss_newton import GaussNewton
from influence_dag.curvature.hessian import Hessian
from influence_dag.curvature.named import CURVATURES
from influence_dag.curvature.operators import Curvature, DenseCurvature

__all__ = ["CURVATURES", "Curvature", "DenseCurvature", "GaussNewton", "Hessian"]
