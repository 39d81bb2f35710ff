"""What each artifact of a study will cost: leading terms, from sizes and measured rates."""

from dataclasses import dataclass

from influence_dag.stages.graph import matrix_of
from influence_dag.store.layout import pair_chunks
from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.study.method_base import ApproximateSettings, MethodSettings
from influence_dag.study.study import Study

FIT_PASSES, SOLVE_STEPS = 100, 30  # what fits and iterative solves take, about
VECTORS, LAYER_PASSES = 100, 10  # and sketches, bases and preconditioners, or Kronecker factors


@dataclass(frozen=True)
class Cost:
    """Of one artifact: bytes on disk and in memory, uncompressed, and seconds."""

    artifact: str
    disk: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Sizes of a study, and seconds of its parts on this machine."""

    train: int
    test: int
    values: int  # of a row's inputs
    itemsize: int
    parameters: int
    gradient_numbers: int  # stored for each row
    gradient: float  # seconds a row, forward and backward
    on_demand: bool  # whether the dataset's rows are read in blocks
    product: float  # seconds a multiply–add in a product of matrices


def cost_of(name: str, study: Study, rates: Rates) -> Cost:
    """Leading terms alone: products of matrices, passes over the rows."""
    n, m, p = rates.train, rates.test, rates.parameters
    size, block = rates.itemsize, study.settings.compute.block_bytes
    lambdas = max(len(study.settings.dampings), 1)
    method, _, what = name.rpartition("/")
    exact = method in study.settings.methods.names and matrix_of(study, method) is not None
    match what:
        case "dataset":
            bytes_ = 8 * (n + m) * (rates.values + 1)
            memory = min(3 * bytes_, 6 * block) if rates.on_demand else 3 * bytes_
            return Cost(name, bytes_, memory, 1e-7 * bytes_)
        case "model":
            fits = study.settings.model.own_fit is not None
            work = FIT_PASSES * n * rates.gradient * 2 if fits else n * rates.gradient
            given = study.settings.model.fit is None
            held = min(n, 2 * _block_rows(study, rates)) if given else n
            return Cost(name, 16 * p, 8 * (held * rates.values + 60 * p * fits), work)
        case "gradients":
            return Cost(name, n * rates.gradient_numbers * size, block, 2 * n * rates.gradient)
        case matrix if matrix in CURVATURE_KINDS:
            work = n * p * min(p * rates.product, 2 * rates.gradient)
            return Cost(name, 8 * p * p, 32 * p * p, work + 8 * p**3 * rates.product)
        case "curvature":
            if exact:
                return Cost(name, 8 * p * p, 24 * p * p, p**3 * rates.product)
            asked = study.settings.methods[method]
            kept = VECTORS * p * size * asked.is_damped  # of Kronecker factors as many, about
            return Cost(name, kept, 2 * kept, _passes(asked) * n * rates.gradient)
        case "influence_factors":
            steps = _products(study.settings.methods[method], rates)
            work = lambdas * m * (steps * n * rates.gradient + p * p * rates.product * exact)
            return Cost(name, lambdas * m * p * size, 3 * m * p * size, work)
        case "influences":
            work = lambdas * m * n * p * rates.product
            return Cost(name, lambdas * m * n * size, 4 * block, work)
        case "perturbation_influences":
            bytes_ = lambdas * size * _kept_derivatives(study, rates)
            return Cost(name, bytes_, 4 * block, m * n * rates.gradient * lambdas)
        case "summary":
            return Cost(name, 8 * _said(study, rates), block, lambdas * m * n * 1e-8)
    refits = n * rates.gradient * FIT_PASSES * 2 * 50 if method == "validation" else 0.0
    return Cost(name, 8 * (m + n), block, refits)


def _passes(asked: MethodSettings) -> int:
    """Over the training rows, by what a method makes of the curvature before any solve."""
    if not asked.is_damped:
        return 0
    return LAYER_PASSES if asked.of_layers else VECTORS


def _products(asked: MethodSettings, rates: Rates) -> float:
    """With the curvature, by the factors of a test row: of a solve, or of its residual alone."""
    if asked.is_iterative:
        return SOLVE_STEPS
    if not isinstance(asked, ApproximateSettings):
        return 0
    from influence_dag.stages.sampling import FREE  # here: names are told before rows are read

    return 1 if asked.residuals == "all" else min(1, FREE / (rates.train * rates.parameters))


def _kept_derivatives(study: Study, rates: Rates) -> int:
    """Numbers that a study keeps of its perturbation influences, of one method at one λ."""
    asked = study.settings.perturbation
    assert asked is not None
    if asked.top:
        return rates.test * min(asked.top, rates.train) * rates.values
    if asked.reduce is None:
        return rates.test * rates.train * rates.values
    return rates.train * (rates.test if asked.reduce.over == "feature" else rates.values)


def _said(study: Study, rates: Rates) -> int:
    """Numbers of a summary: what each block of influences leaves, and what is said of each row."""
    settings, pairs = study.settings, (rates.test, rates.train)
    asked = {str(axis): size for axis, size in (settings.store.chunks or {}).items()}
    _, chunk = pair_chunks(*pairs, itemsize=rates.itemsize, override=asked)
    top, lambdas = min(settings.summary.top, rates.train), max(len(settings.dampings), 1)
    of_test = -(-rates.train // chunk) * (2 + 4 * min(top, chunk)) + 2 + 4 * top
    return lambdas * (rates.test * of_test + 4 * rates.train) + 2 * (rates.test + rates.train)


def _block_rows(study: Study, rates: Rates) -> int:
    """Rows that a given model is shown together."""
    from influence_dag.stages.blocks_of_rows import FEWEST

    return max(FEWEST, study.settings.compute.block_bytes // (8 * max(rates.values, 1)))
