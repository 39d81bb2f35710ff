"""One integer, one case: a module, a loss, rows, how they are handed over, what is expected."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from adversary import (
    layers,
    losses,
    parametrised,
    refusals,
    row_handling,
    sequence_layers,
)
from adversary.data import Draw, each, in_precision
from adversary.layers import EITHER, REFUSED, RIGHT, Parts
from adversary.loss_formulas import Loss
from adversary.packing import OUTPUTS, TARGETS, Network, Packing, Transposed, carried
from torch import Tensor, nn

FAMILIES = {
    f.__name__: f
    for f in (
        layers.chain, layers.in_place, layers.residual, layers.gated, layers.raw_parameters,
        layers.norms, layers.images, layers.signals, sequence_layers.recurrent,
        sequence_layers.cells, sequence_layers.attention, sequence_layers.queries,
        sequence_layers.tokens, sequence_layers.sequences, layers.branching, layers.counting,
        row_handling.sorted_rows, row_handling.turned_rows, row_handling.packed,
        row_handling.present_positions, row_handling.routed, row_handling.skipped_layer,
        row_handling.unrolled, row_handling.time_first, row_handling.folded,
        row_handling.one_by_one, row_handling.shortened, row_handling.piecewise,
        row_handling.scaled_by_frequency, parametrised.shared, parametrised.shared_kernel,
        parametrised.tied_tokens, parametrised.parametrised, parametrised.frozen,
        parametrised.fine_tuned, refusals.batch_dependent, refusals.batch_statistics,
        refusals.no_function_of_theta, refusals.unusual, refusals.bags,
    )
}  # fmt: skip
LOSSES = losses.VECTORS | losses.POSITIONS


@dataclass(frozen=True)
class Case:
    """`x`, `y` have the training rows first; `order` is that of a second view of them."""

    seed: int
    family: str
    loss_family: str
    description: str
    expect: str
    build: Callable[[], nn.Module]
    loss: Loss
    given: str | Callable[..., Tensor]
    output: Packing
    target: Packing
    measurement: bool
    x: Any
    y: Any
    weights: Tensor | None
    rows: int
    dtype: torch.dtype
    wrt: str | None
    wrt_expect: str
    order: Tensor
    cuts: tuple[list[int], list[int], list[int]]
    merged: bool
    train: tuple[type[nn.Module], ...]

    def module(self, dtype):
        """The same module every time, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = self.build().to(dtype).eval()
        for layer in module.modules():
            layer.training = isinstance(layer, self.train)
        return module

    @property
    def perturbed(self):
        """The full name of the module whose output is perturbed, if any."""
        names = (name for name, _ in self.module(self.dtype).named_modules())
        return self.wrt and next(name for name in names if name.split(".")[-1] == self.wrt)

    def output_of(self, answer):
        """What the loss of one row is a function of, out of what the module returns for it."""
        values = self.output.unpack(answer)
        return values[0] if values.ndim else values.reshape(1)

    def value(self, f, t):
        """The loss of one row by its formula."""
        return self.loss.of_row(f, self.target.unpack(t))

    def part(self, which, dtype=torch.float64):
        """(x, y) of some rows."""
        return tuple(in_precision(each(lambda t: t[which], z), dtype) for z in (self.x, self.y))

    def batches(self, index, sizes, *, weighted):
        """A loader of these rows, cut into these sizes."""
        some = []
        for piece in index.split(sizes):
            x, y = self.part(piece, self.dtype)
            if self.merged and not weighted:
                some.append({**x, "labels": y})
            elif weighted and self.weights is not None:
                some.append((x, y, self.weights[piece].to(self.dtype)))
            else:
                some.append((x, y))
        return some


def case(seed: int, family: str | None = None, loss_family: str | None = None) -> Case:
    """The case of that number; the family of modules is the number's remainder."""
    draw = Draw(seed)
    family = family or list(FAMILIES)[seed % len(FAMILIES)]
    # The loss first: some need inputs of a moderate size.
    probe = FAMILIES[family](Draw(seed))
    kinds = losses.POSITIONS if probe.positions else losses.VECTORS
    loss_family = loss_family or draw.one_of(*kinds)
    width = probe.width if probe.bare else None
    loss = kinds[loss_family](draw, width, probe.positions, probe.lengths)
    moderate = Draw(seed)
    moderate.scale = draw.scale
    parts = FAMILIES[family](moderate)
    return _assembled(seed, family, loss_family, parts, loss, draw)


def _assembled(seed, family, loss_family, parts: Parts, loss: Loss, draw: Draw) -> Case:
    output, target, form = _forms(draw, parts, loss)
    weights = draw.weights()
    merged = form == "dict" and target == "tensor" and weights is None and draw.chance(0.3)
    packed = output not in ("tensor", "squeezed") or target != "tensor"
    expect = _expected(parts, loss, output, packed)
    alone = expect != RIGHT  # what a batch shows only as a whole
    cuts = [draw.cuts(draw.rows), draw.cuts(draw.rows), draw.cuts(draw.tests)]
    first = draw.permutation(draw.rows)
    said = f"{family} ({parts.note}), {loss_family} ({loss.note})"
    shown = f"in {form}{' with labels' * merged}, out {output}, y {target}"
    data = f"plain {draw.plain}, scale {draw.scale:g}, {str(draw.dtype)[6:]}"
    weighted = "" if weights is None else ", weights"
    return Case(
        seed, family, loss_family, f"{seed}: {said}, {shown}, {data}{weighted}: {expect}", expect,
        _builder(parts, loss, OUTPUTS[output], form),
        replace(loss, of_row=(packed and loss.hidden) or loss.of_row),
        _given(loss, output, target, draw.dtype),
        OUTPUTS[output], TARGETS[target], draw.chance(0.2) and expect == RIGHT,
        carried(parts.inputs, form), TARGETS[target].pack(loss.targets), weights,
        draw.rows, draw.dtype, parts.wrt if draw.chance(0.5) else None, parts.wrt_expect, first,
        tuple([sum(sizes)] if alone else sizes for sizes in cuts), merged, parts.train,
    )  # fmt: skip


def _forms(draw, parts, loss):
    """How outputs, targets and inputs are handed over; named losses take tensors."""
    packed = callable(loss.given) and draw.chance(0.5)
    output = draw.one_of(*(name for name in OUTPUTS if name != "squeezed")) if packed else "tensor"
    flat = loss.outputs == 1 and loss.targets.ndim == 1
    if output == "tensor" and flat and not parts.positions and draw.chance(0.3):
        output = "squeezed"
    target = draw.one_of(*TARGETS) if packed else "tensor"
    if len(parts.inputs) > 1:
        return output, target, draw.one_of("tuple", "dict")
    return output, target, draw.one_of("tensor", "tensor", "tensor", "tuple", "dict")


def _expected(parts, loss, output, packed):
    kinds = {parts.expect, loss.expect}
    if output in ("squeezed", "object", "with a table"):
        kinds.add(EITHER)
    if packed and isinstance(loss.given, (nn.CrossEntropyLoss, nn.NLLLoss)):
        kinds.add(EITHER if loss.given.weight is not None else RIGHT)  # no longer to be seen
    return next(kind for kind in (REFUSED, EITHER, RIGHT) if kind in kinds)


def _moved(given, dtype):
    return given.to(dtype) if isinstance(given, nn.Module) else given


def _given(loss, output, target, dtype):
    given, out, want = _moved(loss.given, dtype), OUTPUTS[output], TARGETS[target]
    if output in ("tensor", "squeezed") and target == "tensor":
        return given
    return lambda o, y: given(out.unpack(o), want.unpack(y))


def _builder(parts, loss, output, form):
    def build():
        body = parts.build()
        after = [] if parts.bare else [nn.Linear(parts.width, loss.outputs)]
        after += [Transposed()] if parts.positions else []
        if form == "tensor" and output is OUTPUTS["tensor"]:
            before = list(body) if type(body) is nn.Sequential else [body]
            return nn.Sequential(*before, *after)
        return Network(body, nn.Sequential(*after), output.pack)

    return build


__all__ = ["EITHER", "FAMILIES", "LOSSES", "REFUSED", "RIGHT", "Case", "case"]
