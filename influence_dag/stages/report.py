"""How the methods of a study agree, and where everything is."""

from itertools import combinations

import numpy as np

from influence_dag.labelled import Axis
from influence_dag.stages import influences
from influence_dag.stages.base import Update, Whole, Workbench, refresh_whole
from influence_dag.store.fingerprints import fingerprint

ARTIFACT = "report"
FORMULA = 1
AGREEMENT = ("relative_error", "pearson", "spearman_per_test")


def refresh(bench: Workbench) -> Update:
    """Compare each pair of methods: relative error, Pearson, mean Spearman per test row."""
    methods = bench.settings.methods.names
    versions = {
        method: bench.require(influences.artifact(method)).data_version for method in methods
    }
    key = fingerprint(ARTIFACT, FORMULA, versions)

    def produce() -> Whole:
        pairs = {f"{a} vs {b}": compare(bench, a, b) for a, b in combinations(methods, 2)}
        table = np.array([[pair[name] for name in AGREEMENT] for pair in pairs.values()]).reshape(
            -1, len(AGREEMENT)
        )
        arrays = {
            "agreement": (
                ("pair", "measure"),
                table,
                {"long_name": "agreement between methods, smallest damping"},
            )
        }
        attrs = bench.attributes(measures=list(AGREEMENT), pairs=list(pairs), methods=list(methods))
        return Whole(arrays, attrs, {"methods": list(methods), "agreement": pairs})

    return refresh_whole(bench, ARTIFACT, key, produce)


def compare(bench: Workbench, first: str, second: str) -> dict[str, float]:
    """Agreement of two methods' influences, read by runs of test rows (the last λ of a sweep)."""
    arrays = [
        bench.require(influences.artifact(method)).array("influences") for method in (first, second)
    ]
    version = bench.require(influences.artifact(first))
    test, train = Axis.read(version, "test"), Axis.read(version, "train")
    sums, ranks = np.zeros(6), []
    for slots in influences.pieces(0, len(test), arrays[0].chunks[-2]):
        a, b = (
            np.asarray(_rows(array, slots), np.float64)[test.valid[slots]][:, train.valid]
            for array in arrays
        )
        sums += [a.size, a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]
        ranks += [_spearman(x, y) for x, y in zip(a, b, strict=True)]
    n, sa, sb, saa, sbb, sab = sums
    difference = saa + sbb - 2 * sab
    spread = np.sqrt((saa - sa**2 / n) * (sbb - sb**2 / n))
    return {
        "relative_error": float(np.sqrt(max(difference, 0.0) / sbb)),
        "pearson": float((sab - sa * sb / n) / spread),
        "spearman_per_test": float(np.mean(ranks)),
    }


def _rows(array, slots: slice) -> np.ndarray:
    return array[slots] if array.ndim == 2 else array[-1, slots]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])
