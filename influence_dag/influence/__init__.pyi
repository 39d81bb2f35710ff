from .perturbation import perturbation_influences as perturbation_influences
from .upweighting import influences as influences
