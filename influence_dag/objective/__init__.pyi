from .objective import Objective as Objective
from .rows import Rows as Rows
