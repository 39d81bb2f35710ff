"""How the methods of a study agree, and where everything is."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations

import numpy as np

from influence_dag.datasets.slots import Axis, Split
from influence_dag.errors import StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import dampings, naming
from influence_dag.stages.blocks import pieces
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.rankings import ENDS
from influence_dag.stages.ranks import Moments, length, rank_correlations
from influence_dag.stages.row_changes import rows_of_both
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate, Version

FORMULA = FORMULAS["report"]
STRENGTH = ("mean", "mean_absolute", "largest")
AGREEMENT = ("relative_error", "pearson", "spearman_per_test")


def refresh(bench: Workbench) -> Update:
    """Compare each pair of methods: relative error, Pearson, mean Spearman per test row.

    Made anew where validations are other ones: what may be trusted is shown with it.
    """
    methods = bench.settings.methods.names
    read = [name(m) for name in (naming.influences, naming.summary) for m in methods]
    judged = [*read, *map(naming.validation, bench.settings.validation.names)]
    versions = {name: bench.require(name).data_version for name in judged}
    _check_of_one_theta(bench, read)
    key = fingerprint(naming.REPORT, FORMULA, versions)

    def produce() -> Whole:
        alone = {method: strength(bench, method) for method in methods}
        pairs = {f"{a} vs {b}": compare(bench, a, b) for a, b in combinations(methods, 2)}
        arrays = {
            "strength": (("method", "statistic"), _table(alone, STRENGTH), {}),
            "agreement": (("pair", "measure"), _table(pairs, AGREEMENT), {}),
        }
        labels = {
            "method": methods,
            "statistic": STRENGTH,
            "pair": list(pairs),
            "measure": AGREEMENT,
        }
        coordinates = tuple(
            Coordinate(name, (name,), np.array(values, np.dtypes.StringDType()))
            for name, values in labels.items()
        )
        info = {"methods": list(methods), "strength": alone, "agreement": pairs}
        of = {method: versions[naming.influences(method)] for method in methods}
        notes = {naming.OF_INFLUENCES: of}
        return Whole(arrays, bench.attributes(), info, coordinates, notes=notes)

    return refresh_whole(bench, naming.REPORT, key, produce)


def _check_of_one_theta(bench: Workbench, read: Sequence[str]) -> None:
    """Raise `StudyError` where some methods were made alone, and others are of the θ before."""
    of = {name: bench.require(name).attrs["model_data_version"] for name in read}
    if len(set(of.values())) > 1:
        told = ", ".join(f"{name} of θ {theta:.8}" for name, theta in of.items())
        raise StudyError(
            f"{bench.study.name}: what was stored is of different θ ({told}), and says nothing of "
            "how methods agree; materialise all methods first"
        )


def _table(by_name: Mapping[str, Mapping[str, float]], columns: tuple[str, ...]) -> np.ndarray:
    rows = [[row[name] for name in columns] for row in by_name.values()]
    return np.array(rows, np.float64).reshape(-1, len(columns))


def strength(bench: Workbench, method: str) -> dict[str, float]:
    """How large a method's influences are, from what its summary keeps (the last λ of a sweep)."""
    version = bench.require(naming.summary(method))
    valid = bench.axis_of(version, "test").valid

    def last(name: str) -> np.ndarray:
        return dampings.at(version, name, -1)[valid]

    n_train = bench.axis_of(version, "train").count
    return {
        "mean": float(last("test_sum").mean() / n_train),
        "mean_absolute": float(last("test_abs_mean").mean()),
        "largest": float(np.abs([last(f"{end}_influence")[:, 0] for end in ENDS]).max()),
    }


def compare(bench: Workbench, first: str, second: str) -> dict[str, float]:
    """Agreement of two methods' influences, read by runs of test rows (the last λ of a sweep).

    Of the pairs of rows that both have; NaN without any.
    """
    both, ranks, difference = Moments(), [np.empty(0)], 0.0
    for a, b in _blocks(bench, first, second):
        both = both.joined(Moments.of(a, b))
        difference = float(np.hypot(difference, length(a - b)))
        ranks.append(rank_correlations(a, b))
    ranked = (of_rows := np.concatenate(ranks))[~np.isnan(of_rows)]
    size, alike = float(both.lengths[1]), 0.0 if both.count else np.nan
    return {
        "relative_error": difference / size if size else (np.inf if difference else alike),
        "pearson": both.pearson,
        "spearman_per_test": float(ranked.mean()) if len(ranked) else np.nan,
    }


def _blocks(bench: Workbench, *methods: str) -> Iterator[list[np.ndarray]]:
    """Influences by runs of test rows, in float64, of the rows that all of the methods have.

    Those of one may be of another age, with other rows, and be cut otherwise.
    """
    versions = [bench.require(naming.influences(method)) for method in methods]
    test, train = (_of_all(bench, versions, split).slots for split in ("test", "train"))
    stop = int(test[-1]) + 1 if len(test) else 0
    for slots in pieces(0, stop, versions[0].variables["influences"].chunks[-2]):
        rows = test[(test >= slots.start) & (test < slots.stop)] - slots.start
        blocks = (dampings.at(version, "influences", -1, slots) for version in versions)
        yield [block[np.ix_(rows, train)].astype(np.float64) for block in blocks]


def _of_all(bench: Workbench, versions: Sequence[Version], split: Split) -> Axis:
    """The rows that all of some versions have alike; a row keeps its slot."""
    return reduce(rows_of_both, (bench.axis_of(version, split) for version in versions))
