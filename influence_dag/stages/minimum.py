"""Whether θ is a minimum, what that means for the numbers, and what training on changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from influence_dag.datasets.slots import Axis
from influence_dag.stages.wording import NO_MINIMUM
from influence_dag.store import Version
from influence_dag.study.model import ModelSettings

if TYPE_CHECKING:
    import torch

    from influence_dag.objective import Objective, Rows

SMALL = 1e-2  # relative size of the mean gradient up to which θ counts as a minimum
_BATCH = 512
_CURES = (
    "fit: {from: checkpoint} trains on to a minimum; model.minimum: ignore says that it is known"
)


@dataclass(frozen=True)
class Verdict:
    """What is said of θ: whether it is near a minimum, and if it is not, whether that is an error.

    A fit of the pipeline's own has a tolerance to reach; of a θ that was given, the size of the
    mean gradient relative to those that it is the mean of is all that there is.
    """

    is_minimum: bool
    tolerated: bool
    message: str


def judged(model: ModelSettings, info: Mapping[str, Any]) -> Verdict:
    """From the settings and what the stored model says of itself."""
    norm, relative = info["gradient_norm"], info.get("relative_gradient")
    reached = bool(info.get("fit_converged"))
    near = relative is not None and relative <= SMALL
    wanted = model.wanted_minimum
    return Verdict(
        is_minimum=reached or near,
        tolerated=wanted != "require",
        message=_message(model, norm, relative, reached or near),
    )


def _message(model: ModelSettings, norm: float, relative: float | None, is_minimum: bool) -> str:
    said = f"‖∇(mean loss + (w/2)‖θ‖²)‖ = {norm:.2g}"
    if relative is not None:
        said += f", {relative:.2g} of the mean norm of the rows' gradients (a minimum: {SMALL:g})"
    if is_minimum:
        return said
    if model.own_fit:
        missed = f"the fit missed its tolerance {model.own_fit.tolerance:g}"
        others = ", or say minimum: warn" if model.wanted_minimum == "require" else ""
        return f"{said}; {missed}: train longer (max_steps){others}"
    meant = "influences are then of a small step from θ, not of training anew; trust ranks of rows"
    return f"{said}; {meant} more than sizes. {_CURES}"


def measured_before(model: Version, test: Axis, train: Axis) -> str:
    """Which rows the numbers beside θ are of, where they are others than there are now.

    They are measured when θ is stored: pinned, or a checkpoint as it is, θ follows no training
    rows, and no θ follows test rows.
    """
    seen, info = model.attrs, model.attrs["info"]
    others = ["training"] if seen["train_rows"] != train.fingerprint else []
    if "test_mean_after" in info and seen.get("test_rows") not in (None, test.fingerprint):
        others.append("test")
    return f"of the {' and '.join(others)} rows that there were when θ was stored" if others else ""


def assumption(model: ModelSettings, info: Mapping[str, Any]) -> str:
    """What the numbers take for granted of θ, in words for attributes."""
    if judged(model, info).is_minimum:
        return (
            "θ is a minimum of the (penalised) mean loss of the training rows that there were when "
            "it was stored, up to its gradient_norm"
        )
    return (
        f"{NO_MINIMUM}: influences are the response of θ to a row's weight under the damping, "
        "near θ and linearised (the proximal response of Bae et al. 2022), not the outcome of "
        "training anew"
    )


def movement(before: "Objective", after: "Objective", test: "Rows") -> dict[str, float]:
    """How far a fit moved θ, and what it changed in the predictions for test rows."""
    import torch

    from influence_dag.losses import ignored_class

    step, here = after.params - before.params, before.params
    with torch.no_grad():
        one, other = _outputs(before, test), _outputs(after, test)
        losses = [each.measurements(each.params, test).mean().item() for each in (before, after)]
    told = {
        "theta_moved": step.norm().item(),
        "theta_moved_relative": (step.norm() / here.norm()).item(),
        "test_mean_before": losses[0],
        "test_mean_after": losses[1],
    }
    if one is not None and other is not None:
        told["outputs_moved_relative"] = ((other - one).norm() / one.norm()).item()
        if ignored_class(after.loss) is not None:
            changed = (one.argmax(1) != other.argmax(1)).double().mean().item()
            told["predicted_classes_changed"] = changed
    return told


def _outputs(objective: "Objective", rows: "Rows") -> "torch.Tensor | None":
    """One tensor for all rows; None for structures of outputs."""
    import torch

    parts = [objective.outputs(objective.params, batch.x) for batch in rows.batches(_BATCH)]
    return torch.cat(parts) if all(isinstance(part, torch.Tensor) for part in parts) else None
