"""What the stored model makes of each row: its loss and its prediction, one number each.

Part of every method's summary: whoever reads influences asks first what the model said.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import SPLITS, Axis, Split
from influence_dag.fingerprints import Keys, fingerprint, grid_keys
from influence_dag.stages import reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import measurement_key, model_key
from influence_dag.stages.row_changes import rows_of_both
from influence_dag.stages.tasks import Arrays, Compute, Kernel
from influence_dag.stages.workbench import Workbench

if TYPE_CHECKING:
    from torch import Tensor

    from influence_dag.objective import Objective, Rows

NAMES: dict[str, Split] = {
    f"{split}_{what}": split for split in SPLITS for what in ("loss", "predicted")
}


def words(bench: Workbench) -> dict[str, dict[str, str]]:
    """What each array says of itself."""
    measured = bench.settings.model.measurement
    predicted = (
        "prediction at the stored θ: the number of the class with the largest output (by the sign "
        "of one output), or the output itself; NaN where a row has several outputs and no class"
    )
    loss = "loss of the row at the stored θ, without its weight"
    told = {f"{split}_loss": {"long_name": loss} for split in SPLITS}
    if measured:
        told["test_loss"] = {"long_name": f"measurement of the row at the stored θ: {measured}"}
    return told | {f"{split}_predicted": {"long_name": predicted} for split in SPLITS}


def keys_of(bench: Workbench, axis: Axis, chunk: int) -> Keys:
    """A key for each chunk: θ, its code, what is measured, and the rows that are there now."""
    base = fingerprint(
        "seen", FORMULAS["summary"], model_key(bench), measurement_key(bench.study), axis.name
    )
    return grid_keys(base, _of_dataset(bench, axis).digests(chunk))


def _of_dataset(bench: Workbench, axis: Axis) -> Axis:
    """Of rows that the stored dataset has otherwise nothing is said."""
    return rows_of_both(axis, bench.axis("dataset", axis.name))


@dataclass(frozen=True)
class SeenRows(Kernel):
    """Loss and prediction of a run of slots of one split; NaN where a row is missing.

    A chunk is one batch, so that it has the same bits in whatever company it is computed.
    """

    artifact: str
    split: Split
    chunk: int

    def at(self, bench: Workbench) -> Compute:
        objective = reading.shared_objective(bench)
        axis = _of_dataset(bench, bench.axis(self.artifact, self.split))

        def compute(tile: Tile) -> Arrays:
            found = np.full((2, *tile.shape), np.nan)
            for slots in pieces(tile.start[0], tile.stop[0], self.chunk):
                present = slots.start + np.flatnonzero(axis.valid[slots])
                if len(present):
                    rows = reading.load_rows(bench, axis, present)
                    found[:, present - tile.start[0]] = _seen(bench, objective, rows, self.split)
            return {f"{self.split}_loss": found[0], f"{self.split}_predicted": found[1]}

        return compute


def _seen(bench: Workbench, objective: "Objective", rows: "Rows", split: Split) -> np.ndarray:
    """`(2, rows)`: what each row's loss (or measurement) is, and what is predicted for it."""
    import torch

    measure = objective.measurement if split == "test" else None
    size = bench.settings.compute.batch_size
    parts = []
    with torch.no_grad():
        for start in range(0, len(rows), size):
            few = rows[slice(start, start + size)]
            outputs = objective.outputs(objective.params, few.x)
            losses = (measure or objective.loss)(outputs, few.y)
            predicted = predictions(outputs, few.y, bench.settings.model.loss)
            parts.append(torch.stack([losses.double(), predicted.double()]))
    return torch.cat(parts, dim=1).cpu().numpy()


def predictions(outputs: object, targets: "Tensor", loss: str) -> "Tensor":
    """The class with the largest output, or the output itself; NaN for what is neither."""
    import torch

    nothing = torch.full((len(targets),), torch.nan, device=targets.device)
    if not isinstance(outputs, torch.Tensor) or targets.ndim > 2:
        return nothing
    if outputs.numel() == len(targets):
        numbers = outputs.reshape(-1)
        return (numbers > 0).double() if loss == "bce_with_logits" else numbers
    is_classifier = outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
    return outputs.argmax(dim=1) if is_classifier else nothing
