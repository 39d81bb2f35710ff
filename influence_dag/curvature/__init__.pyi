from .gauss_newton import GaussNewton as GaussNewton
from .hessian import Hessian as Hessian
from .named import CURVATURES as CURVATURES
from .operators import Curvature as Curvature
from .operators import DenseCurvature as DenseCurvature
