"""Methods as a study sets them: solver, curvature, stored factorisation, attributes."""

from typing import TYPE_CHECKING, cast

from influence_dag.datasets.slots import Axis
from influence_dag.errors import StoreError, StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import dampings, naming, reading
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import callable_key, measurement_key, model_key
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.imported import import_callable

if TYPE_CHECKING:  # a plan needs keys and words: what computes imports torch
    import torch

    from influence_dag.curvature import Curvature, DenseCurvature
    from influence_dag.curvature.batched import BatchedCurvature
    from influence_dag.objective import Rows
    from influence_dag.solvers import Factorization, Method


def kind(bench: Workbench, method: str) -> str:
    """`hessian` or `gauss_newton`: the matrix whose inverse the method approximates."""
    return bench.settings.methods[method].curvature


def build_method(bench: Workbench, method: str, damping: float | None = None) -> "Method":
    """The solver with the study's settings, on blocks of parameters when the study says so.

    `damping`: an automatic λ that is not stored yet.
    """
    from influence_dag.solvers import Blockwise, build, parameter_blocks
    from influence_dag.solvers.rounding import rounding

    asked, solver = bench.settings.methods[method], bench.settings.methods[method].solver
    if method == "direct":
        solver["damping"] = _factorised_for(bench, method) if damping is None else damping
        size = bench.require("model").attrs["info"]["parameters"]
        solver["rounding"] = rounding(bench.dtype, size)  # rows are differentiated in that dtype
    field = f"methods.{method}.distribution"
    if name := bench.settings.methods.drawn_by.get(field):
        solver["distribution"] = import_callable(name, bench.study.root, field)
    if asked.blocks == "full":
        return build(method, solver)
    try:
        blocks = parameter_blocks(reading.parameter_slices(bench), asked.blocks)
        return Blockwise(method=build(method, solver), blocks=blocks, dampings=asked.block_damping)
    except ValueError as error:
        raise StudyError(f"{bench.study.name}: methods.{method}: {error}") from error


def block_names(bench: Workbench, method: str) -> tuple[str, ...]:
    """The blocks of parameters that a method works on, by name; none where it works on all."""
    blocks = bench.settings.methods[method].blocks
    if blocks == "full":
        return ()
    from influence_dag.solvers import parameter_blocks

    return tuple(parameter_blocks(reading.parameter_slices(bench), blocks))


def _factorised_for(bench: Workbench, method: str) -> float | None:
    """The one λ that a direct factorisation is for; None: it serves several."""
    known, blocks = bench.settings.dampings, bench.settings.methods[method].block_damping
    return known[0] if len(known) == 1 and not blocks else None


def factorization_settings(bench: Workbench, method: str) -> dict:
    settings, known = bench.settings.methods[method].factorization, bench.settings.dampings
    if bench.settings.is_auto_damped:
        matrix = bench.settings.matrix_of_damping(method)
        is_own = matrix is None or bench.settings.methods[method].uses_matrix
        settings["damping"] = "auto" if is_own else f"auto, of the stored {matrix}"
    elif method == "direct":
        settings["damping"] = "any" if _factorised_for(bench, method) is None else list(known)
    field = f"methods.{method}.distribution"
    if name := bench.settings.methods.drawn_by.get(field):
        settings["distribution_code"] = callable_key(bench.study, name, field)
    if settings.get("fisher") == "sampled" or settings.get("batch_size"):
        settings["drawn"] = "in the order of the rows' content"
    if settings.get("batch_size") and bench.settings.data.weight is not None:
        settings["batches"] = "over their share of all weights"
    return settings


def curvature_key(bench: Workbench, method: str) -> str:
    """Of a factorisation, all but the rows: θ, and the settings that it depends on."""
    fitted = factorization_settings(bench, method)
    return fingerprint(naming.curvature(method), FORMULAS["curvature"], model_key(bench), fitted)


def check_curvature(bench: Workbench, method: str) -> None:
    """Raise `StudyError` for a factorisation that is of another θ, or of other settings, than now.

    A run brings all up to date in turn. Who has some made alone may leave behind what they are
    made from, and a product of what is of two θ is the influence of neither.
    """
    check_of_now(bench, naming.curvature(method), "settings_key", curvature_key(bench, method))


def check_factors(bench: Workbench, method: str) -> None:
    """The same for factors."""
    check_of_now(bench, naming.factors(method), "base_key", factors_key(bench, method))


def check_gradients(bench: Workbench) -> None:
    """The same for gradients of training rows."""
    check_of_now(bench, naming.GRADIENTS, "model_key", model_key(bench))


def check_of_now(bench: Workbench, artifact: str, name: str, wanted: str) -> None:
    """The same for an artifact that says in an attribute what it is of.

    What this run has brought up to date is of another code only if that was edited since: the next
    run finds what it was made of, and computes it anew.
    """
    if artifact in bench.brought_up_to_date:
        return
    if bench.require(artifact).attrs.get(name) != wanted:
        raise StudyError(
            f"{bench.study.name}/{artifact} is of another θ, or of other settings or code, than "
            "there are now, and what is made from it would be of both; materialise it first"
        )


def factors_key(bench: Workbench, method: str) -> str:
    """Of factors, all but the test row: θ, the factorisation, how it solves, the measurement."""
    version = bench.require(naming.curvature(method))
    settings = bench.settings.methods[method].model_dump(mode="json")
    return fingerprint(
        "factors",
        FORMULAS["factors"],
        model_key(bench),
        measurement_key(bench.study),
        version.data_version,
        method,
        settings,
        dampings.in_key(bench, method),
        *([] if bench.settings.methods[method].is_damped else ["no residual"]),
    )


def load_operator(bench: Workbench, method: str, seen: Version | None = None) -> "Curvature":
    """What a method multiplies with: the stored matrix, or products over training rows.

    With `seen`, a stored factorisation, over the rows that it was made from (which are not the
    current ones when the curvature is pinned).
    """
    if bench.settings.methods[method].uses_matrix:
        import torch

        from influence_dag.curvature import DenseCurvature

        matrix = bench.require(kind(bench, method)).read(kind(bench, method))
        return DenseCurvature(torch.from_numpy(matrix).to(bench.device))
    axis, version = _rows_of(bench, seen)
    slots = axis.slots[axis.drawn] if draws_in_order(bench, method) else None
    if bench.settings.methods[method].of_layers:  # goes through its rows once or twice
        rows = reading.rows_in_blocks(bench, axis, version, bench.dtype, slots)
    else:
        rows = reading.load_rows(bench, axis, slots, version=version)
    return curvature_over(bench, method, rows)


def draws_in_order(bench: Workbench, method: str) -> bool:
    """Whether a method draws as it goes through its rows, which then come as `Axis.drawn` says.

    (Labels that are drawn from a distribution of ours find their place among the draws.)
    """
    of_function = f"methods.{method}.distribution" in bench.settings.methods.drawn_by
    return of_function or bool(getattr(bench.settings.methods[method], "batch_size", None))


def curvature_over(bench: Workbench, method: str, rows: "Rows") -> "Curvature":
    """The method's curvature as products over some rows."""
    from influence_dag.curvature import CURVATURES

    curvature = CURVATURES[kind(bench, method)]
    return curvature(
        reading.load_objective(bench), rows, batch_size=bench.settings.compute.batch_size
    )


def _rows_of(bench: Workbench, seen: Version | None) -> tuple[Axis, Version]:
    current, axis = bench.require("dataset"), bench.axis("dataset", "train")
    if seen is None or axis.fingerprint == seen.attrs["train_rows"]:
        return axis, current
    number = seen.attrs["dataset_version"]
    version = bench.store.version("dataset", number)
    axis = bench.axis_of(version, "train")
    if axis.fingerprint != seen.attrs["train_rows"]:
        raise StoreError(
            f"{bench.study.name}: version {number} of dataset has other rows than the stored "
            f"{seen.artifact} was made from; remove the latter and refresh again"
        )
    return axis, version


def formed(operator: "Curvature") -> "DenseCurvature":
    """The matrix of a curvature, whose products are nearly free."""
    from influence_dag.curvature import DenseCurvature

    if isinstance(operator, DenseCurvature):
        return operator
    return DenseCurvature(cast("BatchedCurvature", operator).dense())


def load_factorization(
    bench: Workbench, method: str, curvature: "Curvature | None" = None
) -> "Factorization":
    """The stored factorisation, ready to solve; with products of `curvature` where it is given."""
    version = bench.require(naming.curvature(method))
    tensors = stored_tensors(bench, version)
    asked = bench.settings.methods[method]
    solves_alone = asked.uses_matrix or asked.of_layers
    if not solves_alone:
        curvature = curvature or load_operator(bench, method, version)
    return build_method(bench, method).restore(tensors, curvature)


def stored_tensors(bench: Workbench, version: Version) -> "dict[str, torch.Tensor]":
    """The tensors of a stored factorisation, as it named them."""
    import torch

    def stored(name: str) -> torch.Tensor:
        tensor = torch.from_numpy(version.read(name)).to(bench.device)
        return tensor[0] if version.array(name).attrs["scalar"] else tensor

    return {naming.tensor_name(name): stored(name) for name in version.variables}


def method_attributes(bench: Workbench, method: str, **extra) -> dict:
    """What every array of a method says about itself."""
    version, words = bench.require(naming.curvature(method)), wording_of(bench, method)
    blocks, known = block_names(bench, method), dampings.of_method(bench, method)
    return bench.attributes(
        method=method,
        method_settings=bench.settings.methods[method].model_dump(mode="json"),
        damping=words.damping(blocks, known),
        **dampings.told(bench, method),
        n_train=version.attrs["n_train"],
        weights=version.attrs["weights"],
        weight_sum=version.attrs["weight_sum"],
        curvature=words.curvature,
        measurement=bench.settings.model.measurement or "the loss",
        assumes=bench.require("model").attrs["assumes"],
        symbols=words.symbols,
        model_data_version=bench.require("model").data_version,
        curvature_data_version=version.data_version,
        **extra,
    )
