from .results import InfluenceAccessor as InfluenceAccessor
from .results import StudyResults as StudyResults
from .results import open_study as open_study
from .results import portable as portable
from .results import settings_of as settings_of
from .results import without_holes as without_holes
from .suspects import suspects as suspects
