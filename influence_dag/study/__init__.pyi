from .data import DataSettings as DataSettings
from .model import FitSettings as FitSettings
from .model import ModelSettings as ModelSettings
from .study import Study as Study
from .study import StudySettings as StudySettings
from .study import study_name as study_name
