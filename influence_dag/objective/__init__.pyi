from .objective import LossFunction as LossFunction
from .objective import Objective as Objective
from .objective import flushed_denormals as flushed_denormals
from .objective import per_sample_loss as per_sample_loss
from .objective import without_denormals as without_denormals
from .rows import Rows as Rows
