from .objective import LossFunction as LossFunction
from .objective import Objective as Objective
from .objective import flushed_denormals as flushed_denormals
from .objective import per_sample_loss as per_sample_loss
from .rows import Rows as Rows
