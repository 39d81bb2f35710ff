# In the order of the stages.
from .components import (
    StudyIOManager as StudyIOManager,
)
from .components import (
    StudyResource as StudyResource,
)
from .components import (
    study_assets as study_assets,
)
from .components import (
    study_definitions as study_definitions,
)
from .curvature import GaussNewton as GaussNewton
from .curvature import Hessian as Hessian
from .functional.calls import (
    InverseHvpResult as InverseHvpResult,
)
from .functional.calls import (
    TorchTwiceDifferentiable as TorchTwiceDifferentiable,
)
from .functional.calls import (
    compute_influence_factors as compute_influence_factors,
)
from .functional.calls import (
    compute_influences as compute_influences,
)
from .functional.calls import (
    solve_hvp as solve_hvp,
)
from .gradients.per_sample import per_sample_gradients as per_sample_gradients
from .influence.perturbation import perturbation_influences as perturbation_influences
from .influence.upweighting import influences as influences
from .objective.objective import Objective as Objective
from .objective.rows import Rows as Rows
from .query.results import StudyResults as StudyResults
from .query.results import open_study as open_study
from .query.suspects import suspects as suspects
from .running import materialize as materialize
from .solvers import (
    EKFAC as EKFAC,
)
from .solvers import (
    KFAC as KFAC,
)
from .solvers import (
    Arnoldi as Arnoldi,
)
from .solvers import (
    Blockwise as Blockwise,
)
from .solvers import (
    ConjugateGradient as ConjugateGradient,
)
from .solvers import (
    Direct as Direct,
)
from .solvers import (
    Identity as Identity,
)
from .solvers import (
    LiSSA as LiSSA,
)
from .solvers import (
    Nystroem as Nystroem,
)
from .stages.status import status as status

__version__: str
