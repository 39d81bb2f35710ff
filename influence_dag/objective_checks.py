"""What makes a model unusable for influence functions, found before work is lost."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import grad

from influence_dag import losses
from influence_dag.errors import ModelError
from influence_dag.rows import Inputs, Rows, input_leaves, map_inputs

if TYPE_CHECKING:
    from influence_dag.objective import Objective

_FEW = 4
_BATCH = 1024
_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def check_objective(objective: "Objective", rows: Rows) -> None:
    """Raise `ModelError` for the first thing that is wrong; see `Objective.check`."""
    _check_modes(objective.module)
    _check_inputs_are_kept(objective, rows)
    check_labels(objective, rows[:_FEW].x, rows.y)
    _check_shapes(objective, rows)
    _check_repeats(objective, rows)
    _check_independence(objective, rows)
    _check_finite(objective, rows)


def _check_modes(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        dropout = layer.p if isinstance(layer, _DROPOUTS) else getattr(layer, "dropout", 0.0)
        if layer.training and isinstance(dropout, float) and dropout > 0:
            raise ModelError(
                f"{type(layer).__name__} {name!r} drops at random (p={dropout:g}, train mode), "
                "so losses do not repeat; call module.eval() first"
            )
        if isinstance(layer, _BATCH_NORMS) and _uses_batch_statistics(layer):
            raise ModelError(
                f"{type(layer).__name__} {name!r} uses the statistics of the batch, so the loss "
                "of one sample depends on the others; call module.eval() first, and build it "
                "with track_running_stats=True"
            )


def _uses_batch_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        return layer.training and layer.track_running_stats
    return layer.training or getattr(layer, "running_mean", None) is None


def _check_inputs_are_kept(objective: "Objective", rows: Rows) -> None:
    """Run first, and on a copy: the other checks would change the rows that they are given."""
    kept, given = rows[:_FEW].x, map_inputs(torch.clone, rows[:_FEW].x)
    try:
        with torch.no_grad():
            objective.outputs(objective.params, given)
    except Exception:
        return  # told with its cause by the checks that follow
    for before, after in zip(input_leaves(kept), input_leaves(given), strict=True):
        if not torch.equal(before.nan_to_num(), after.nan_to_num()):
            raise ModelError(
                f"{type(objective.module).__name__} changes its inputs in place, so a second call "
                "would see other data; let it work on a copy (x = x * 0.5 instead of x *= 0.5)"
            )


def check_labels(objective: "Objective", x: Inputs, labels: Tensor) -> None:
    """Raise `ModelError` for a label that the loss has no output for; `x` are a few inputs."""
    if objective.loss is losses.bce_with_logits:
        outside = ((labels < 0) | (labels > 1)).flatten(1 if labels.ndim > 1 else 0)
        _refuse_label(outside, labels, "bce_with_logits wants targets between 0 and 1")
    if objective.loss is not losses.cross_entropy or labels.ndim > 1:
        return
    if labels.is_floating_point():
        _refuse_label(labels % 1 != 0, labels, "cross_entropy wants whole numbers, one a class")
        labels = labels.long()
    try:
        with torch.no_grad():
            classes = objective.outputs(objective.params, x).shape[1]
    except Exception as error:
        shapes = ", ".join(str(tuple(leaf.shape[1:])) for leaf in input_leaves(x))
        raise ModelError(
            f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}"
        ) from error
    outside = (labels < 0) | (labels >= classes)
    _refuse_label(outside, labels, f"the model has {classes} outputs (labels 0 to {classes - 1})")


def _refuse_label(outside: Tensor, labels: Tensor, limit: str) -> None:
    if outside.any():
        row = int(outside.reshape(len(outside), -1).any(1).nonzero()[0])
        raise ModelError(f"row {row} has label {labels[row].tolist()}, but {limit}", row=row)


def _check_shapes(objective: "Objective", rows: Rows) -> None:
    few = rows[:_FEW]
    for what, function in (("loss", objective.losses), ("measurement", objective.measurements)):
        try:
            with torch.no_grad():
                values = function(objective.params, few)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the {what} fails on the first {len(few)} rows: {type(error).__name__}: {error}"
            ) from error
        if values.shape != (len(few),):
            raise ModelError(
                f"the {what} returns shape {tuple(values.shape)} for {len(few)} rows; wanted one "
                f"value per sample, shape ({len(few)},). For a loss that averages over the batch "
                "use reduction='none' or influence_dag.reduced_loss"
            )


def _check_repeats(objective: "Objective", rows: Rows) -> None:
    few = rows[:_FEW]
    gradient = grad(objective.mean_loss)
    pairs = {
        "loss": [objective.losses(objective.params, few) for _ in range(2)],
        "gradient": [gradient(objective.params, few) for _ in range(2)],
    }
    for what, (first, second) in pairs.items():
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise ModelError(
                f"the {what} of the same rows differs between two calls by "
                f"{(first - second).abs().max():.1e}; something in the model or the loss is "
                "random (functional dropout, sampling, noise): switch it off"
            )


def _check_independence(objective: "Objective", rows: Rows) -> None:
    few = rows[:_FEW]
    with torch.no_grad():
        together = objective.losses(objective.params, few)
        alone = torch.cat([objective.losses(objective.params, row) for row in few.batches(1)])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ModelError(
            "the loss of a row depends on the other rows of its batch (largest difference "
            f"{(together - alone).abs().max():.1e}); every row has to stand for itself"
        )


def _check_finite(objective: "Objective", rows: Rows) -> None:
    with torch.no_grad():
        values = torch.cat(
            [objective.losses(objective.params, batch) for batch in rows.batches(_BATCH)]
        )
    bad = (~torch.isfinite(values)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"the loss of row {int(bad[0])} is {values[bad[0]].item()} "
            f"({len(bad)} of {len(values)} rows are not finite); look at its inputs, "
            "and whether the model has diverged",
            row=int(bad[0]),
        )
