"""How the methods of a study agree, and where everything is."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from influence_dag.fingerprints import fingerprint
from influence_dag.stages import dampings, naming
from influence_dag.stages.blocks import pieces
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.rankings import ENDS
from influence_dag.stages.ranks import Moments, length, rank_correlations
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate

FORMULA = FORMULAS["report"]
STRENGTH = ("mean", "mean_absolute", "largest")
AGREEMENT = ("relative_error", "pearson", "spearman_per_test")


def refresh(bench: Workbench) -> Update:
    """Compare each pair of methods: relative error, Pearson, mean Spearman per test row."""
    methods = bench.settings.methods.names
    read = [name(m) for name in (naming.influences, naming.summary) for m in methods]
    versions = {name: bench.require(name).data_version for name in read}
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
    """Agreement of two methods' influences, read by runs of test rows (the last λ of a sweep)."""
    both, ranks, difference = Moments(), list[np.ndarray](), 0.0
    for a, b in zip(_blocks(bench, first), _blocks(bench, second), strict=True):
        both = both.joined(Moments.of(a, b))
        difference = float(np.hypot(difference, length(a - b)))
        ranks.append(rank_correlations(a, b))
    ranked = (of_rows := np.concatenate(ranks))[~np.isnan(of_rows)]
    size = float(both.lengths[1])
    return {
        "relative_error": difference / size if size else (np.inf if difference else 0.0),
        "pearson": both.pearson,
        "spearman_per_test": float(ranked.mean()) if len(ranked) else np.nan,
    }


def _blocks(bench: Workbench, method: str) -> Iterator[np.ndarray]:
    """A method's influences by runs of test rows, holes left out, in float64."""
    version = bench.require(naming.influences(method))
    test, train = bench.axis_of(version, "test"), bench.axis_of(version, "train")
    for slots in pieces(0, len(test), version.variables["influences"].chunks[-2]):
        block = dampings.at(version, "influences", -1, slots)
        yield block[test.valid[slots]][:, train.valid].astype(np.float64)
