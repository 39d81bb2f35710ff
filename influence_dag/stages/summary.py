"""What the arrays say in short: sums, strongest pairs, self-influence."""

import numpy as np
import torch

from influence_dag.labelled import Axis
from influence_dag.method_settings import ITERATIVE
from influence_dag.stages import curvature, factors, gradients, influences
from influence_dag.stages.base import Result, Update, Whole, Workbench, refresh_whole
from influence_dag.store import Version
from influence_dag.store.fingerprints import fingerprint

FORMULA = 1


def artifact(method: str) -> str:
    return f"{method}/summary"


def wants_self_influence(bench: Workbench, method: str) -> bool:
    """By default only where it is cheap: an iterative method needs one solve a training row."""
    wanted = bench.settings.summary.self_influence
    return method not in ITERATIVE if wanted == "auto" else bool(wanted)


def refresh(bench: Workbench, method: str) -> Update:
    """Sums over each axis, the strongest helpers and harmers of each test row, self-influence."""
    version = bench.require(influences.artifact(method))
    gradient_version = bench.require(gradients.ARTIFACT).data_version
    settings = bench.settings.summary.model_dump()
    key = fingerprint("summary", FORMULA, version.data_version, gradient_version, settings)

    def produce() -> Whole:
        test, train = Axis.read(version, "test"), Axis.read(version, "train")
        dims, _, coordinates = factors.damping_axis(bench)
        sweeps = [
            _one(bench, version, test, train, at)
            for at in (range(len(bench.settings.dampings)) if dims else [None])
        ]
        arrays = _labelled(sweeps, dims)
        if wants_self_influence(bench, method):
            arrays |= _solves_of_training_rows(bench, method, train, dims)
        attrs = {**factors.method_attributes(bench, method), "influences_version": version.number}
        labels = (*test.coordinates(), *train.coordinates(), *coordinates)
        return Whole(arrays, attrs, {"test_rows": test.count, "train_rows": train.count}, labels)

    return refresh_whole(bench, artifact(method), key, produce)


_DIMS = {
    "train_sum": ("train",),
    "train_abs_mean": ("train",),
    "test_sum": ("test",),
    "top_train": ("test", "position"),
    "top_influence": ("test", "position"),
    "bottom_train": ("test", "position"),
    "bottom_influence": ("test", "position"),
}
_MEANING = {
    "train_sum": "sum over test rows: positive, the training row helps on the whole",
    "train_abs_mean": "mean absolute influence over test rows",
    "test_sum": "sum over training rows",
    "top_train": "slots on the train axis of the most helpful training rows, strongest first",
    "top_influence": "their influences",
    "bottom_train": "slots on the train axis of the most harmful training rows, strongest first",
    "bottom_influence": "their influences",
}


_TRAIN_SOLVES = {
    "self_influence": {
        "long_name": "influence of the training row on its own loss",
        "formula": "∇L(z_i)ᵀ (H + λI)⁻¹ ∇L(z_i)",
        "sign": "large: the model leans on this row alone, as it does on mislabelled ones",
        "units": "loss; not divided by n_train",
    },
    "parameter_influence_norm": {
        "long_name": "how far the parameters move when the training row is left out",
        "formula": "‖(H + λI)⁻¹ ∇L(z_i)‖; leaving out z_i moves θ by about 1/n_train of it",
        "units": "parameter; not divided by n_train",
    },
}


def _labelled(sweeps: list[dict[str, np.ndarray]], dims: tuple[str, ...]) -> dict:
    joined = {
        name: np.stack([one[name] for one in sweeps]) if dims else sweeps[0][name] for name in _DIMS
    }
    return {
        name: ((*dims, *_DIMS[name]), values, {"long_name": _MEANING[name]})
        for name, values in joined.items()
    }


def _one(
    bench: Workbench, version: Version, test: Axis, train: Axis, damping: int | None
) -> dict[str, np.ndarray]:
    array = version.array("influences")
    rows = array.chunks[-2]
    top = min(bench.settings.summary.top, train.count)
    out = {
        "train_sum": np.zeros(len(train)),
        "train_abs_mean": np.zeros(len(train)),
        "test_sum": np.full(len(test), np.nan),
        **{f"{end}_train": np.full((len(test), top), -1, np.int64) for end in ("top", "bottom")},
        **{f"{end}_influence": np.full((len(test), top), np.nan) for end in ("top", "bottom")},
    }
    for slots in influences.pieces(0, len(test), rows):
        block = np.asarray(array[slots] if damping is None else array[damping, slots], np.float64)
        _add(
            out,
            block[:, train.slots],
            slots.start + np.flatnonzero(test.valid[slots]),
            slots.start,
            train.slots,
        )
    out["train_abs_mean"] /= max(1, test.count)
    for name in ("train_sum", "train_abs_mean"):
        out[name][~train.valid] = np.nan
    return out


def _add(
    out: dict[str, np.ndarray],
    block: np.ndarray,
    rows: np.ndarray,
    start: int,
    train_slots: np.ndarray,
) -> None:
    """Take a run of test rows (of training rows that exist) into the sums and rankings."""
    block = block[rows - start]
    out["train_sum"][train_slots] += block.sum(axis=0)
    out["train_abs_mean"][train_slots] += np.abs(block).sum(axis=0)
    out["test_sum"][rows] = block.sum(axis=1)
    for end, sign in (("top", -1.0), ("bottom", 1.0)):
        top = out[f"{end}_train"].shape[1]
        order = _smallest(sign * block, top)
        out[f"{end}_train"][rows] = train_slots[order]
        out[f"{end}_influence"][rows] = np.take_along_axis(block, order, axis=1)


def _smallest(block: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest entries of each row, in order; all are not sorted for these few."""
    few = np.sort(np.argpartition(block, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(block, few, axis=1), axis=1, kind="stable")
    return np.take_along_axis(few, order, axis=1)


def _solves_of_training_rows(
    bench: Workbench, method: str, train: Axis, dims: tuple[str, ...]
) -> dict[str, Result]:
    """`∇L(z_i)ᵀ (H + λI)⁻¹ ∇L(z_i)` and `‖(H + λI)⁻¹ ∇L(z_i)‖` of each training row."""
    factorization = curvature.load_factorization(bench, method)
    size = bench.require("model").attrs["info"]["parameters"]
    rows = max(1, bench.settings.compute.block_bytes // (8 * size))
    values = np.full((2, len(bench.settings.dampings), len(train)), np.nan)
    for slots in influences.pieces(0, len(train), rows):
        present = np.flatnonzero(train.valid[slots])
        if not len(present):
            continue
        G = gradients.load_gradients(bench, slots).dense()[present]
        for k, damping in enumerate(bench.settings.dampings):
            with factors.named_rows(train.ids[slots.start + present], f"{method}, training rows"):
                x = factorization.solve(G, damping=damping).x
            found = torch.stack([(x * G).sum(dim=1), x.norm(dim=1)]).double().cpu().numpy()
            values[:, k, slots.start + present] = found
    return {
        name: ((*dims, "train"), array if dims else array[0], attrs)
        for (name, attrs), array in zip(_TRAIN_SOLVES.items(), values, strict=True)
    }
