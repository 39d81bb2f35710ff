"""Rows for which a layer is called only because others of their batch need it.

A layer that runs where any row asks for it (an expert, a further step, an early exit) sees rows
that it does nothing for. By themselves they would not call it, and K-FAC's activations are of the
calls that a row makes by itself, however rows are cut into batches.
"""

from collections import Counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor, vmap

from influence_dag.gradients.recording import recorded_layers
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.structures import map_tensors, tensors_of

Call = tuple[str, Tensor, Tensor]
Calls = Counter[tuple[str, torch.Size]]
# Of the layers of some names, for rows of some shapes; None where that depends on the row.
Known = dict[tuple[frozenset[str], tuple[torch.Size, ...]], Calls | None]


def uncalled_rows(
    objective: Objective,
    rows: Rows,
    calls: list[Call],
    sent: dict[str, Float[Tensor, "c b ..."]],
    known: Known,
) -> dict[str, Bool[Tensor, " b"]]:
    """Of each captured layer, the rows that alone would not call it; none where all would.

    `calls` are those of the batch, `sent` what comes back to each layer: where it is not 0 the
    outputs depend on the layer, and the row calls it. Rows with other positions are run alone,
    unless one row under vmap shows that the module's calls do not depend on its data, which is
    noted in `known` for the batches that follow. Raises `NotCaptured` for layers that a row alone
    calls otherwise (with fewer positions, more often).
    """
    # The first row tells most networks in which some positions are never reached.
    early = any(bool(_silent(g[:, :1]).any()) for g in sent.values())
    if early and _calls_are_the_same(objective, rows, calls, frozenset(sent), known):
        return {}
    silent = {name: _silent(g) for name, g in sent.items()}
    silent = {name: there for name, there in silent.items() if bool(there.any())}
    if not silent:
        return {}
    if _calls_are_the_same(objective, rows, calls, frozenset(silent), known):
        return {}
    shapes = {name: x.shape[1:] for name, x, _ in calls if name in silent}
    found = {name: torch.zeros_like(there) for name, there in silent.items()}
    for row in torch.stack(list(silent.values())).any(0).nonzero().flatten().tolist():
        alone = _calls(objective, rows[row : row + 1], set(silent))
        for name in (name for name, there in silent.items() if there[row]):
            of_layer = [shape for called, shape in alone.elements() if called == name]
            if of_layer not in ([], [shapes[name]]):
                raise NotCaptured({name})
            found[name][row] = not of_layer
    return found


def _silent(g: Float[Tensor, "c b ..."]) -> Bool[Tensor, " b"]:
    """Rows of which some positions get nothing back."""
    there = g.ne(0).any(-1).any(0)
    return ~there.reshape(len(there), -1).all(1)


def _calls_are_the_same(
    objective: Objective, rows: Rows, calls: list[Call], names: frozenset[str], known: Known
) -> bool:
    """Whether any row calls these layers as the batch does, whatever its values."""
    shapes = {name: x.shape[1:] for name, x, _ in calls if name in names}
    asked = names, tuple(leaf.shape[1:] for leaf in tensors_of(rows.x))
    if asked not in known:
        known[asked] = _calls_of_any_row(objective, rows[:1], set(names))
    return known[asked] == Counter(shapes.items())


def _calls(objective: Objective, row: Rows, names: set[str]) -> Calls:
    """The layers that a row calls, with the shapes of what they take, its axis of rows left out."""
    theta = objective.params.clone().requires_grad_()  # without, torch may fuse layers
    with torch.enable_grad(), recorded_layers(objective.module, names, 1) as seen:
        objective.outputs(theta, row.x)
    return Counter((name, x.shape[1:]) for name, x, _ in seen.calls)


def _calls_of_any_row(objective: Objective, row: Rows, names: set[str]) -> Calls | None:
    """The same for every row; None where it may depend on the row's values: vmap hides them."""
    found: Calls = Counter()
    theta = objective.params.clone().requires_grad_()

    def alone(x: object) -> tuple[Tensor, ...]:
        with recorded_layers(objective.module, names, 1) as seen:
            outputs = objective.outputs(theta, map_tensors(_unsqueeze, x))
        found.update((name, given.shape[1:]) for name, given, _ in seen.calls)
        return tuple(tensors_of(outputs))

    try:
        with torch.enable_grad():
            vmap(alone)(row.x)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return found


def _unsqueeze(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)
