"""What makes a model unusable for influence functions, found before work is lost."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from influence_dag import losses
from influence_dag.errors import ModelError
from influence_dag.losses import check_real, ignored_class, likelihood_of
from influence_dag.objective.attempts import NotRunError, attempted
from influence_dag.objective.batching import check_all_rows, check_axis_of_rows
from influence_dag.objective.chosen_output import predicts_next
from influence_dag.objective.remembered import check_remembers_nothing
from influence_dag.objective.rows import Inputs, Rows
from influence_dag.objective.twice_differentiable import no_derivative
from influence_dag.structures import described, map_tensors, tensors_of
from influence_dag.texts import a_kind, left_behind, listed

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective

_FEW = 4


def check_objective(
    objective: "Objective", rows: Rows, in_float64: Callable[[], "Objective"]
) -> None:
    """Raise `ModelError` for the first thing that is wrong; see `Objective.check`."""
    _check_modes(objective.module)
    _check_inputs_are_kept(objective, rows)
    check_labels(objective, rows[:_FEW].x, rows.y)
    _check_shapes(objective, rows)
    if len(rows) > 1:
        one, two = (_few_outputs(objective, rows[:count].x) for count in (1, 2))
        check_axis_of_rows(objective, one, two, rows[:2].y)
    _check_reached(objective, rows)
    _check_repeats(objective, rows)
    check_all_rows(objective, rows, in_float64=in_float64)


def _check_modes(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        dropout = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
        if layer.training and isinstance(dropout, float) and dropout > 0:
            raise ModelError(
                f"{type(layer).__name__} {name!r} drops at random (p={dropout:g}, train mode), "
                "so losses do not repeat; call module.eval() first"
            )
        if isinstance(layer, _BatchNorm | _InstanceNorm) and _uses_batch_statistics(layer):
            raise ModelError(
                f"{type(layer).__name__} {name!r} uses the statistics of the batch, so the loss "
                "of one sample depends on the others; call module.eval() first, and build it "
                "with track_running_stats=True"
            )


def _uses_batch_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, _InstanceNorm):
        return layer.training and layer.track_running_stats
    return layer.training or getattr(layer, "running_mean", None) is None


def _check_inputs_are_kept(objective: "Objective", rows: Rows) -> None:
    """Run first, and on a copy: the other checks would change the rows that they are given."""
    kept, given = rows[:_FEW].x, map_tensors(torch.clone, rows[:_FEW].x)
    check_remembers_nothing(objective, Rows(map_tensors(torch.clone, kept), rows[:_FEW].y))
    with suppress(NotRunError), torch.no_grad(), attempted():  # told by the checks that follow
        objective.outputs(objective.params, given)
    for before, after in zip(tensors_of(kept), tensors_of(given), strict=True):
        if not torch.equal(before.nan_to_num(), after.nan_to_num()):
            raise ModelError(
                f"{type(objective.module).__name__} changes its inputs in place, so a second call "
                "would see other data; let it work on a copy (x = x * 0.5 instead of x *= 0.5)"
            )


def check_labels(objective: "Objective", x: Inputs, labels: Any) -> None:
    """Raise `ModelError` for a label that the loss has no output for; `x` are a few inputs."""
    if not isinstance(labels, Tensor):
        return
    if likelihood_of(objective.loss) or ignored_class(objective.loss) is not None:
        check_real(labels)
    if objective.loss is losses.bce_with_logits:
        outside = ((labels < 0) | (labels > 1)).flatten(1 if labels.ndim > 1 else 0)
        _refuse_label(outside, labels, "bce_with_logits wants targets between 0 and 1")
    ignored = ignored_class(objective.loss)
    if ignored is None:
        return
    if objective.loss is not losses.next_token:
        _check_shifted(objective, x, labels[:_FEW], ignored)
    outputs = _few_outputs(objective, x)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ModelError(
            f"the model returns {described(outputs)}; cross-entropy wants one tensor (rows, "
            "classes): say which with model.output (a name or position), or take a loss of your "
            "own, for example "
            "lambda output, target: F.cross_entropy(output['logits'], target, reduction='none')"
        )
    if outputs.shape[1] == 1:
        raise ModelError(
            "the model has 1 output, of which cross-entropy is 0 whatever it says; give it an "
            "output for each class, or take bce_with_logits (targets between 0 and 1)"
        )
    if labels.is_floating_point():
        if labels.shape[1:] == outputs.shape[1:]:
            return  # probabilities of the classes
        _refuse_label(labels % 1 != 0, labels, "cross_entropy wants whole numbers, one a class")
    classes = outputs.shape[1]
    outside = (labels.long() < 0) | (labels.long() >= classes)
    outside &= labels.long() != ignored
    _refuse_label(
        outside,
        labels,
        f"the model has {classes} outputs{f' (labels 0 to {classes - 1})' if classes else ''}; "
        "correct the label, or give the model an output for each class",
    )


def _check_shifted(objective: "Objective", x: Inputs, labels: Tensor, ignored: int) -> None:
    """Refuse the inputs themselves as labels of a model that predicts what comes after them."""
    labelled = labels != ignored
    same = [
        part.shape == labels.shape and torch.equal(part[labelled], labels[labelled])
        for part in tensors_of(x)
    ]
    if labels.ndim < 2 or labels.is_floating_point() or not any(same) or not labelled.any():
        return
    with torch.no_grad():
        outputs = objective.returned(objective.unflatten(objective.params), x)
    if predicts_next(outputs):
        raise ModelError(
            "the labels are the model's own input tokens, position by position, and "
            f"{type(objective.module).__name__} predicts the token after each: take "
            "loss='next_token', which shifts them as transformers does, or shift them in the data "
            "(labels[t] = tokens[t + 1], -100 where there is none)"
        )


def _few_outputs(objective: "Objective", x: Inputs) -> Any:
    try:
        with torch.no_grad():
            return objective.outputs(objective.params, x)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model fails on inputs {described(x)}: {type(error).__name__}: {error}; it has "
            f"to take such a batch{_of_whole_numbers(x)}{left_behind(error)}"
        ) from error


def _of_whole_numbers(x: Inputs) -> str:
    """What to do where measurements, such as pixels, are in a type for tokens."""
    if all(leaf.is_floating_point() for leaf in tensors_of(x)):
        return ""
    return (
        ". Whole numbers come to it as they are, as tokens do; what is measured, such as pixels, "
        "has to be in decimals (x.float(); in a study a features.scale makes them so)"
    )


def _refuse_label(outside: Tensor, labels: Tensor, limit: str) -> None:
    if outside.any():
        row = int(outside.reshape(len(outside), -1).any(1).nonzero()[0])
        raise ModelError(f"row {row} has label {labels[row].tolist()}, but {limit}", row=row)


def _check_shapes(objective: "Objective", rows: Rows) -> None:
    few = rows[:_FEW]
    for what, function in _asked(objective).items():
        try:
            with torch.no_grad():
                values = function(objective.params, few)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the {what} fails on the first {len(few)} rows: {type(error).__name__}: {error}"
                f"{left_behind(error)}"
            ) from error
        if not isinstance(values, Tensor) or values.shape != (len(few),):
            seen = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else a_kind(values)
            raise ModelError(
                f"the {what} returns {seen} for {len(few)} rows; wanted one "
                f"value per sample, shape ({len(few)},). For a loss that averages over the batch "
                "use reduction='none' or influence_dag.reduced_loss"
            )
        if (
            values.is_floating_point()
            and torch.finfo(values.dtype).bits < torch.finfo(objective.dtype).bits
        ):
            raise ModelError(
                f"the {what} is {values.dtype} and the model's parameters are {objective.dtype}: "
                "something in it rounds to another precision (float(), .half(), a tensor made "
                "without dtype=); keep that of the output"
            )


def _check_reached(objective: "Objective", rows: Rows) -> None:
    """Values depend on the module's parameters as θ's entries alone, which stand in for them.

    What a loss, a closure or a list holds of them itself stays as it is when θ is exchanged, and
    would be missing from every derivative.
    """
    own = [objective.module.get_parameter(name) for name in objective.parameter_names]
    for what, function in _asked(objective).items():
        with torch.enable_grad():
            total = function(objective.params, rows[:_FEW]).sum()
        if not total.requires_grad:
            continue
        found = torch.autograd.grad(total, own, allow_unused=True)
        names = [n for n, g in zip(objective.parameter_names, found, strict=True) if g is not None]
        if names:
            raise ModelError(
                f"the {what} reaches {listed(names, 3)} past the module's own attributes (a sum "
                "over model.parameters() in the loss, a list, a closure, something kept of an "
                "earlier call), which would be missing from its derivatives; let the module use "
                "self.weight and its layers, and give the weight of an L2 penalty as the damping: "
                "(w/2)‖θ‖² in a fit is λ = w"
            )


def _check_repeats(objective: "Objective", rows: Rows) -> None:
    for name, function in _asked(objective).items():
        runs = [_values_with_gradient(objective, rows[:_FEW], name, function) for _ in range(2)]
        said = (name, "gradient" if name == "loss" else f"gradient of the {name}")
        for what, first, second in zip(said, *runs, strict=True):
            if not torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True):
                raise ModelError(
                    f"the {what} of the same rows differs between two calls by "
                    f"{(first - second).abs().max():.1e}; something in the model or the {name} is "
                    "random (functional dropout, sampling, noise): switch it off"
                )


def _asked(objective: "Objective") -> dict[str, Callable[[Tensor, Rows], Tensor]]:
    """What is differentiated of rows, by its name."""
    measured = {"measurement": objective.measurements} if objective.measurement else {}
    return {"loss": objective.losses, **measured}


def _values_with_gradient(
    objective: "Objective", rows: Rows, name: str, function: Callable[[Tensor, Rows], Tensor]
) -> tuple[Tensor, Tensor]:
    """The value of each row, and the gradient of their mean."""
    theta = objective.params.clone().requires_grad_()
    with torch.enable_grad():
        values = function(theta, rows)
        mean = values.sum() / len(rows)  # whatever they weigh: it may be nothing
    if not mean.requires_grad:
        raise ModelError(
            f"the {name} does not depend on the parameters that autograd sees: something in the "
            f"model or the {name} detaches them (detach(), .data, numpy, torch.no_grad())"
        )
    try:
        return values.detach(), torch.autograd.grad(mean, theta)[0]
    except RuntimeError as error:
        raise no_derivative("first", objective, error) from error
