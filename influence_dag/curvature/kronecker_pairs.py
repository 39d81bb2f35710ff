"""Pairs of layer inputs and output gradients under a Fisher, batch by batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.curvature.called_rows import Known, uncalled_rows
from influence_dag.curvature.drawn_labels import Distribution, Draw, Ranked
from influence_dag.curvature.finite import check_rows
from influence_dag.curvature.fisher_batches import (
    FisherBatch,
    combined,
    with_one,
    with_positions_last,
    without,
)
from influence_dag.curvature.kronecker_fisher import FisherName, output_roots
from influence_dag.curvature.kronecker_layout import (
    DenseGroup,
    KroneckerLayer,
    KroneckerLayout,
    Place,
    place_of,
)
from influence_dag.gradients.capture import Pair, layer_pair
from influence_dag.gradients.checks import check_batch
from influence_dag.gradients.found_layouts import own_parameters
from influence_dag.gradients.layers import is_capturable, layer_of, parameter_name
from influence_dag.gradients.layouts import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradients.local import local_gradients
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.gradients.recording import recorded_layers
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.footprint import kept_numbers
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.objective.outputs import Leaves, OutputSpace, flat

_NUMBERS = 2**24  # numbers captured at once
_MARGIN = 2**6  # by which what is captured for all root vectors may be more than a graph keeps


@dataclass(frozen=True, eq=False)
class FisherPairs:
    """The batches of a Fisher at `objective.params`; a second pass gives the same ones."""

    objective: Objective
    rows: Rows
    layout: KroneckerLayout
    fisher: FisherName = "exact"
    seed: int = 0
    batch_size: int = 512
    distribution: Distribution | None = None

    def __iter__(self) -> Iterator[FisherBatch]:
        return self.beginning_with(0)

    def beginning_with(self, first: int) -> Iterator[FisherBatch]:
        """The batches from a row on, whose labels, if drawn, are the first that are drawn."""
        generator, size = torch.Generator().manual_seed(self.seed), self.rows_at_once
        ranks = None if callable(self.distribution) else self.rows.ranks
        ranked = None if ranks is None else Ranked(self.seed, ranks)
        for start in range(first, len(self.rows), size):
            draws = generator if ranked is None else ranked.of_rows(start)
            yield self._batch(self.rows[start : start + size], draws, start)

    @cached_property
    def _known_calls(self) -> Known:
        return {}

    @cached_property
    def numbers_per_row(self) -> int:
        """How many numbers are captured a row."""
        return max(1, self._batch(self.rows[:1], torch.Generator()).numbers)

    @property
    def rows_at_once(self) -> int:
        most = min(self.batch_size, max(1, len(self.rows)))
        if _MARGIN * kept_numbers(self.objective, self.rows[:2]) * most <= _NUMBERS:
            return most  # a small network's, which takes longer to try on a row
        return max(1, min(most, _NUMBERS // self.numbers_per_row))

    @flushed_denormals()
    def _batch(
        self, rows: Rows, generator: torch.Generator | Ranked, first: int = 0
    ) -> FisherBatch:
        local = {group.name for group in self.layout.dense if group.local}
        names = {layer.name for layer in self.layout.layers} | local
        theta = self.objective.params.clone().requires_grad_()
        recording = recorded_layers(self.objective.module, names, len(rows))
        with torch.enable_grad(), recording as seen, seen.telling_failures():
            space, returned = OutputSpace.run(self.objective, theta, rows)
        space = space.used()
        with torch.enable_grad():
            leaves = space.leaves_of(returned)
            outputs = flat(leaves)
        if seen.rebuilt:
            seen.check(outputs, OutputSpace.of(self.objective, rows).used().values)
        roots = self._roots(space, leaves, generator)
        check_rows(roots.transpose(0, 1), first)
        if rows.weights is not None:
            roots = roots * rows.weights.to(roots).sqrt()[:, None]
        pairs, caught = (
            self._captured(seen.calls, rows, theta, outputs, roots) if names else ([], {})
        )
        dense = self._dense(rows, roots, caught)
        return FisherBatch(rows.weight_sum, pairs, dense, rows.weights)

    def _roots(
        self, space: OutputSpace, leaves: Leaves, generator: torch.Generator | Ranked
    ) -> Float[Tensor, "c n m"]:
        """Root vectors in the flat outputs; a loss of one tensor is asked in its own shape."""
        loss, outputs, draw = space.loss_of_flat, flat(leaves), self.distribution
        if isinstance(space.template, Tensor):
            loss, outputs = self.objective.loss, leaves[0]
        elif len(leaves) == 1:
            loss, outputs = space.loss_of_leaf, leaves[0]
        if callable(draw) and not isinstance(space.template, Tensor):
            draw = _of_structure(draw, space)
        roots = output_roots(
            loss,
            outputs.detach(),
            space.rows.y,
            fisher=self.fisher,
            generator=generator,
            distribution=draw,
        )
        return roots.reshape(*roots.shape[:2], -1)

    def _captured(
        self,
        calls: list[tuple[str, Tensor, Tensor]],
        rows: Rows,
        theta: Tensor,
        outputs: Float[Tensor, "n m"],
        roots: Float[Tensor, "c n m"],
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[Place, Tensor]]:
        """Each layer's pair for all root vectors, and the gradients (c, n, size) of local groups.

        Held against a backward pass to θ.
        """
        self._check_calls(calls)
        with torch.enable_grad():  # one number each: see `plain_gradient`
            totals = [(root * outputs).sum() for root in roots]
        made = [out for _, _, out in calls]
        gradients = [
            torch.autograd.grad(total, made, retain_graph=True, materialize_grads=True)
            for total in totals
        ]
        pairs: dict[str, Pair] = {}
        written: dict[Place, Tensor] = {}
        for (name, x, _), parts in zip(calls, zip(*gradients, strict=True), strict=True):
            layer = layer_of(self.objective.module, name)
            if not is_capturable(layer):
                written |= self._local(name, x.detach(), parts, len(outputs))
                continue
            pairs[name] = _pair(name, layer, x.detach(), parts, len(outputs))
        for layer in self.layout.layers:
            if layer.name not in pairs:
                pairs[layer.name] = self._uncalled(layer, roots)
        self._check_captured(pairs, written, theta, outputs, roots)
        sent = {name: g for name, (_, g) in pairs.items()}
        uncalled = uncalled_rows(self.objective, rows, calls, sent, self._known_calls)
        biased = {layer.name for layer in self.layout.layers if layer.bias}
        ordered = [
            (without(uncalled.get(name), with_one(a) if name in biased else a), g)
            for name, (a, g) in ((layer.name, pairs[layer.name]) for layer in self.layout.layers)
        ]
        return ordered, written

    def _local(
        self, name: str, x: Tensor, g: Sequence[Float[Tensor, "n ..."]], rows: int
    ) -> dict[Place, Tensor]:
        """Gradients of a layer that is no product, by their places in θ."""
        if x.shape[:1] != (rows,) or g[0].shape[:1] != (rows,):
            raise NotCaptured({name})
        parameters = own_parameters(self.objective, name)
        found = local_gradients(name, layer_of(self.objective.module, name), parameters, x, g)
        slices = self.objective.slices
        return {place_of(slices[f"{name}.{role}"]): values for role, values in found.items()}

    def _check_calls(self, calls: list[tuple[str, Tensor, Tensor]]) -> None:
        seen = Counter(name for name, _, output in calls if output.requires_grad)
        local = [group.name for group in self.layout.dense if group.local]
        names = [*(layer.name for layer in self.layout.layers), *local]
        # A layer that the batch does not call adds nothing to its products.
        strange = {n for n in names if seen[n] > 1 or (n in local and seen[n] == 0)}
        if strange:
            raise NotCaptured(strange)

    def _uncalled(self, layer: KroneckerLayer, roots: Float[Tensor, "c n m"]) -> Pair:
        """The pair of a layer that no row calls: of no positions."""
        owner = layer_of(self.objective.module, layer.name)
        named = self.objective.unflatten(self.objective.params)
        weight = named[parameter_name(owner, layer.name, "weight")].flatten(1)
        d_out, d_in = weight.T.shape if layer.transposed else weight.shape
        c, n = roots.shape[:2]
        return roots.new_zeros(n, 0, d_in), roots.new_zeros(c, n, 0, d_out)

    def _check_captured(
        self,
        pairs: dict[str, Pair],
        written: dict[Place, Tensor],
        theta: Tensor,
        outputs: Tensor,
        roots: Tensor,
    ) -> None:
        r"""Compare $\sum_{ic} u_i r_c g_{ic}$ with one backward pass of $u_i r_c v_{ic}$."""
        generator = torch.Generator().manual_seed(len(outputs))
        r = torch.randn(len(roots), generator=generator, dtype=torch.float64).to(roots)
        mixed = {name: (a, combined(r, g)) for name, (a, g) in pairs.items()}
        sums = {str(at[0]): torch.einsum("c,cns->ns", r, g) for at, g in written.items()}
        blocks: list[LinearLayout | DenseLayout] = [
            LinearLayout(layer.name, layer.weight, layer.bias, 0, 0, transposed=layer.transposed)
            for layer in self.layout.layers
        ]
        for group in self.layout.dense:
            places = [at for at in group.places if group.local]
            blocks += [DenseLayout(str(start), start, stop, group.name) for start, stop in places]
        with torch.enable_grad():
            values = (outputs * torch.einsum("c,cnm->nm", r, roots)).sum(1)
        check_batch(theta, values, blocks, mixed, sums, seed=len(outputs))

    def _dense(
        self, rows: Rows, roots: Float[Tensor, "c n m"], caught: dict[Place, Tensor]
    ) -> list[Tensor]:
        """Gradients of v · f, sample by sample, of each dense group."""
        wanted = [group for group in self.layout.dense if not group.local]
        found = caught | (self._row_by_row(rows, roots, wanted) if wanted else {})
        return [
            torch.cat([found[place].flatten(0, 1) for place in group.places], dim=1)
            for group in self.layout.dense
        ]

    def _row_by_row(
        self, rows: Rows, roots: Float[Tensor, "c n m"], groups: list[DenseGroup]
    ) -> dict[Place, Tensor]:
        """The same through the whole network, a pass a root vector, for what is not captured."""
        linear = OutputSpace.of(self.objective, rows[:1]).used().along()
        blocks = tuple(
            DenseLayout(str(start), start, stop) for group in groups for start, stop in group.places
        )
        layout = GradientLayout(blocks, self.objective.size)
        parts = [
            per_sample_gradients(linear, Rows(rows.x, root), layout=layout).tensors()
            for root in roots
        ]
        places = [place for group in groups for place in group.places]
        return {at: torch.stack([part[f"{at[0]}.dense"] for part in parts]) for at in places}


def _pair(
    name: str, layer: nn.Module, x: Tensor, parts: Sequence[Tensor], rows: int
) -> tuple[Tensor, Tensor]:
    """A layer's inputs, and its outputs' gradients for each root vector."""
    a, first = layer_pair(layer, x, parts[0])
    if a.ndim < 2 or len(a) != rows or len(first) != rows:
        raise NotCaptured({name})
    if first.ndim == 3 and isinstance(layer, nn.Conv1d | nn.Conv2d):
        return a, with_positions_last([part.flatten(2) for part in parts])
    return a, torch.stack([first, *(layer_pair(layer, x, part)[1] for part in parts[1:])])


def _of_structure(draw: Draw, space: OutputSpace) -> Draw:
    """The draw as a function of the outputs that roots are taken in."""
    return lambda outputs, targets, generator: draw(
        space.structured(outputs.flatten(1)), targets, generator
    )
