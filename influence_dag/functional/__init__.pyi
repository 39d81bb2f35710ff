from .calls import InverseHvpResult as InverseHvpResult
from .calls import TorchTwiceDifferentiable as TorchTwiceDifferentiable
from .calls import compute_influence_factors as compute_influence_factors
from .calls import compute_influences as compute_influences
from .calls import solve_hvp as solve_hvp
