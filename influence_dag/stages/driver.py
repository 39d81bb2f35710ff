"""How an artifact is refreshed, whatever it holds.

Every artifact is a pure function of fingerprints. A stage computes the keys that its blocks
ought to have, compares them with the keys that are stored, computes the difference and
publishes one new version. Nothing else decides what is recomputed.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from influence_dag.fingerprints import KEY_BYTES, fingerprint
from influence_dag.stages import dampings, updates
from influence_dag.stages.blocks import Tile, stream, tiles
from influence_dag.stages.executors import executor_of
from influence_dag.stages.finite import Finite
from influence_dag.stages.tasks import Arrays, BlockTask, Inputs, Kernel, at_hand
from influence_dag.stages.told import told
from influence_dag.stages.workbench import Workbench, policies, provenance
from influence_dag.store import Coordinate, Draft, Layout, Variable, Version
from influence_dag.unchanged import watch

Result = tuple[tuple[str, ...], np.ndarray, dict]  # dims, values, attributes


@dataclass(frozen=True, eq=False)
class Part:
    """Arrays of an artifact that are cut and computed together.

    `keys` has shape `(*grid, 16)` for the leading, chunked axes; further axes are whole. The axis
    of a single λ is among them, in tiles that are asked for and in arrays that come; it is `hidden`
    from the store.
    A `kernel` computes rectangles of whole chunks from what is published, in whatever process. What
    needs more is computed `here`, in the one that writes: from sources, or from what earlier parts
    have written into the draft, of which only its journal knows what can be trusted. `tell` says
    what there is to say of finished numbers. Numbers of rows that exist have to be finite, unless
    NaN says something (`may_lack`). What a cell is reduced from may take more bytes (`cell_bytes`)
    than what is kept of it: it then counts in how much is computed at once.
    """

    names: tuple[str, ...]
    keys: np.ndarray
    kernel: Kernel | None = None
    here: Callable[[Tile, Draft], Arrays] | None = None
    tell: Callable[[Tile, Arrays], None] = lambda tile, arrays: None
    may_lack: bool = False
    cell_bytes: int = 0
    hidden: bool = False

    def stored(self, asked: Layout, kept: Layout) -> "Part":
        """As it is stored: without the leading axis where that is only in what was asked."""
        if asked[self.names[0]].dims == kept[self.names[0]].dims:
            return self
        return replace(self, keys=self.keys[0], hidden=True)

    def asked(self, tile: Tile) -> Tile:
        """What is to be computed for a tile of what is stored."""
        return tile.alone if self.hidden else tile

    def kept(self, tile: Tile, arrays: Arrays) -> tuple[Tile, Arrays]:
        """What is to be stored of what was computed."""
        if not tile.is_alone:
            return tile, arrays
        return tile.inner, {name: values[0] for name, values in arrays.items()}

    def expected(self, layout: Layout) -> dict[str, np.ndarray]:
        shapes = {variable.name: len(variable.shape) for variable in layout.variables}
        grid = self.keys.shape[:-1]
        return {
            name: self.keys.reshape(*grid, *[1] * (shapes[name] - len(grid)), KEY_BYTES)
            for name in self.names
        }


def refresh_blocks(
    bench: Workbench,
    artifact: str,
    layout: Layout,
    parts: Sequence[Part],
    *,
    info: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> updates.Update:
    """Bring a chunked artifact up to date: recompute the outdated blocks, keep the rest, publish.

    Nothing larger than `compute.block_bytes` is held on the way to the store. `notes` are
    attributes that no reader's numbers depend on; where they differ a version says the new ones.
    """
    started = time.perf_counter()
    asked, layout = layout, dampings.stored(layout)
    parts = [part.stored(asked, layout) for part in parts]
    expected = {name: keys for part in parts for name, keys in part.expected(layout).items()}
    plan = bench.store.plan(artifact, layout, expected)
    if plan.up_to_date and (not notes or says(bench.store.version(artifact), notes)):
        return updates.current_update(bench, artifact, kept=plan.reused, info=info)
    reasons = updates.reasons_of(plan)
    if bench.plan_only:
        bench.plan(artifact, layout)
        return updates.planned_update(bench, artifact, plan.computed, plan.reused, reasons, info)
    with bench.store.new_version(artifact, layout) as draft:
        outdated = draft.outdated(expected)
        for part in parts:
            _compute_part(bench, draft, layout, part, expected, outdated)
        watch().check()
        draft.set_attrs(policies=policies(bench), **notes)
    computed = sum(map(len, outdated.values()))
    total = sum(keys[..., 0].size for keys in expected.values())
    counts = computed, total - computed, draft.bytes_written
    return updates.finished_update(bench, artifact, started, counts, reasons, info)


def says(version: Version, notes: Mapping[str, str]) -> bool:
    """Whether a version has these notes already."""
    return notes.items() <= version.attrs.items()


def _compute_part(
    bench: Workbench, draft: Draft, layout: Layout, part: Part, expected: Mapping, outdated: Mapping
) -> None:
    """Stream the outdated tiles of one part; its arrays share the grid of their leading axes."""
    depth = part.keys.ndim - 1
    work = _tiles(layout, part, outdated, bench.settings.compute.block_bytes)
    finite = None if part.may_lack else Finite(draft.artifact, layout)
    used = watch()  # here: tiles may be written by other threads

    def write(tile: Tile, arrays: Arrays) -> None:
        used.check_often()
        for name, values in arrays.items():
            if finite:
                finite.check(name, values, tile.start)
            tail = (0,) * (values.ndim - depth)
            keys = {
                (*index, *tail): expected[name][(*index, *tail)].tobytes()
                for index in tile.chunk_indices
            }
            draft.write(name, (*tile.start, *tail), values, keys)

    if not work:
        return
    computed = told(_computed(bench, draft, part, work), len(work), draft.artifact, bench.report)
    if len(work) > 1:
        stream(computed, write)
    else:  # nothing is computed while it is written: no thread has to be started
        with closing(computed):
            write(*next(computed))


def _tiles(layout: Layout, part: Part, outdated: Mapping, block_bytes: int) -> list[Tile]:
    """The outdated chunks of a part, in rectangles of at most a block each."""
    depth = part.keys.ndim - 1
    variables = [variable for variable in layout.variables if variable.name in part.names]
    wanted = sorted({index[:depth] for name in part.names for index in outdated[name]})
    kept_bytes = sum(
        max(1, int(np.prod(variable.shape[depth:]))) * np.dtype(variable.dtype).itemsize
        for variable in variables
    )
    values = max(1, block_bytes // max(kept_bytes, part.cell_bytes))
    lead = variables[0]  # all are cut alike
    return tiles(wanted, lead.chunks[:depth], lead.shape[:depth], max_values=values)


def _computed(
    bench: Workbench, draft: Draft, part: Part, work: Sequence[Tile]
) -> Generator[tuple[Tile, Arrays], None, None]:
    """The arrays of each tile, from the executor where a kernel computes them.

    Nothing here keeps what it has handed on: it is as large as a block.
    """
    if part.kernel is None:
        assert part.here is not None
        for tile in map(part.asked, work):
            yield part.kept(tile, part.here(tile, draft))
        return
    kernel = part.kernel
    inputs = Inputs.of(bench, draft.artifact, runs_code=kernel.runs_code)

    def told(done: tuple[BlockTask, Arrays]) -> tuple[Tile, Arrays]:
        part.tell(done[0].tile, done[1])
        return part.kept(done[0].tile, done[1])

    executor = executor_of(bench)
    tasks = (BlockTask(inputs, kernel, part.asked(tile)) for tile in work)
    with at_hand(inputs, bench), closing(executor.run(tasks)) as results:
        yield from map(told, results)


def refresh_whole(
    bench: Workbench,
    artifact: str,
    key: str,
    produce: Callable[[], "Whole"],
    *,
    reusable: Callable[[Version], bool] = lambda version: False,
    again: bool = False,
) -> updates.Update:
    """Bring an artifact up to date that is computed all at once: a fit, a factorisation, a summary.

    `key` is the fingerprint of everything it reads; `reusable` may accept a stored version made
    from other inputs (a pinned policy). `again` makes it anew whatever is stored.
    """
    started = time.perf_counter()
    if not again and (serves := _reused(bench, artifact, key, reusable)):
        return serves
    reasons = _why_whole(bench.store.current(artifact))
    if bench.plan_only:
        bench.plan(artifact)
        return updates.planned_update(bench, artifact, sum(reasons.values()), 0, reasons, {})
    with bench.store.exclusive(artifact):  # another process may be computing the same
        if not again and (serves := _reused(bench, artifact, key, reusable)):
            return serves
        made = produce()
        watch().check()
        blocks, written = _publish(bench, artifact, key, made)
    counts = blocks, 0, written
    return updates.finished_update(bench, artifact, started, counts, reasons, made.info)


def _why_whole(current: Version | None) -> dict[str, int]:
    """Why all blocks of an artifact that is made at once are to be made again."""
    if current is None:
        return {"not computed": 1}
    if current.verify():
        return {"damaged": 1}
    return {"inputs changed": blocks_of(current)}


def blocks_of(version: Version) -> int:
    """How many chunks a version has, of all its arrays."""
    return sum(math.prod(variable.grid) for variable in version.variables.values())


def _reused(
    bench: Workbench, artifact: str, key: str, reusable: Callable[[Version], bool]
) -> updates.Update | None:
    """The stored version's update when it was made from the same, and is undamaged."""
    current = bench.store.current(artifact)
    if current is None:
        return None
    if damage := current.verify():  # first: its attributes may be among it
        bench.report(f"{artifact}: {len(damage)} files are damaged ({damage[0].file}); made again")
        return None
    if not (current.attrs.get("fingerprint") == key or reusable(current)):
        return None
    info = current.attrs.get("info")
    return updates.current_update(bench, artifact, kept=blocks_of(current), info=info)


def _publish(bench: Workbench, artifact: str, key: str, made: "Whole") -> tuple[int, int]:
    """Write all of an artifact as a new version; blocks and bytes written."""
    variables = tuple(_variable(name, *entry) for name, entry in made.arrays.items())
    layout = Layout(variables, made.coordinates, {**made.attrs, "fingerprint": key}, provenance())
    block_key = bytes.fromhex(fingerprint(key, artifact))
    with bench.store.new_version(artifact, layout) as draft:
        for variable, (_, values, _) in zip(variables, made.arrays.values(), strict=True):
            keys = dict.fromkeys(np.ndindex(*variable.grid), block_key)
            draft.write(variable.name, (0,) * values.ndim, values, keys)
        # Times and the like: told, not fingerprinted.
        draft.set_attrs(info=made.info, policies=policies(bench), **made.notes)
        for name, content in made.files.items():
            draft.add_file(name, content)
    return draft.chunks_written, draft.bytes_written


@dataclass(frozen=True)
class Whole:
    """What `refresh_whole` publishes: arrays as name → (dims, values, attributes), and the rest."""

    arrays: Mapping[str, Result]
    attrs: Mapping[str, Any]
    info: dict[str, Any] = field(default_factory=dict)
    coordinates: tuple[Coordinate, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)  # attributes outside the fingerprint


_WHOLE_CHUNK_BYTES = 4 * 2**20


def _variable(name: str, dims: tuple[str, ...], values: np.ndarray, attrs: dict) -> Variable:
    """Chunks of whole trailing dimensions, about 4 MiB each."""
    row_bytes = max(1, int(np.prod(values.shape[1:], dtype=np.int64)) * values.itemsize)
    rows = max(1, min(values.shape[0], _WHOLE_CHUNK_BYTES // row_bytes)) if values.ndim else 1
    chunks = (rows, *(max(1, size) for size in values.shape[1:])) if values.ndim else ()
    return Variable(name, dims, values.shape, values.dtype.str, chunks, attrs)
