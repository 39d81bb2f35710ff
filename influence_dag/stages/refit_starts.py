"""Where refits of a study start: θ, and that in words."""

import torch

from influence_dag.objective.modules import build_module, load_checkpoint
from influence_dag.stages.reading import load_objective, study_objective
from influence_dag.stages.workbench import Workbench
from influence_dag.study.imported import import_callable
from influence_dag.study.validation import DatamodelsSettings
from influence_dag.validation.datamodels import initial_params


def initial(bench: Workbench, count: int = 1) -> torch.Tensor:
    """θ before any fit, one a row: as built with the fit's seed and the `count - 1` after it.

    Where the fit trains on from a checkpoint that is its only start.
    """
    model = bench.settings.model
    if model.trains_on:
        module = build_module(model, bench.study.root, torch.float64)
        load_checkpoint(module, bench.study.path(str(model.checkpoint)))
        return study_objective(bench.study, module).params[None].to(bench.device)
    build = import_callable(model.build, bench.study.root, "model.build")
    return initial_params(build, range(_seed(bench), _seed(bench) + count)).to(bench.device)


def built(bench: Workbench) -> str:
    """Where `initial` is, in words."""
    if bench.settings.model.trains_on:
        return "at the given checkpoint: where the pipeline's own fit starts"
    told = f"at what model.build makes, seed {_seed(bench)}"
    return told if is_checkpoint(bench) else f"{told}: where the pipeline's own fit starts"


def _seed(bench: Workbench) -> int:
    fit = bench.settings.model.own_fit
    return fit.seed if fit else 0


def subset_starts(bench: Workbench, settings: DatamodelsSettings) -> tuple[torch.Tensor, str]:
    """Where the subsets' fits start, one θ for all or one for each, and that in words.

    Not at the stored θ, which has seen every row (a network would remember them), but where it is a
    checkpoint of which no start is known.
    """
    if is_checkpoint(bench):
        return load_objective(bench, dtype=torch.float64).params, "at the given checkpoint"
    if settings.initial_weights == "same":
        return initial(bench)[0], built(bench)
    others = initial(bench, settings.count + 1)[1:]
    seeds = f"{_seed(bench) + 1} to {_seed(bench) + settings.count}"
    return others, f"each at what model.build makes, seeds {seeds}"


def is_checkpoint(bench: Workbench) -> bool:
    """Whether θ is a file's as it stands."""
    return bench.settings.model.fit is None
