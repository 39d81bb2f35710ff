from .accessor import InfluenceAccessor as InfluenceAccessor
from .holes import portable as portable
from .holes import without_holes as without_holes
from .reopened import settings_of as settings_of
from .results import StudyResults as StudyResults
from .results import open_study as open_study
from .suspects import suspects as suspects
