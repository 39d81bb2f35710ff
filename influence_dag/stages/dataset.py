"""The rows of a study, checked, labelled and given slots."""

from contextlib import suppress
from typing import Any

import numpy as np

from influence_dag.datasets.assignment import AxisChange, assign_slots, fresh_axis
from influence_dag.datasets.content import source_fingerprint
from influence_dag.datasets.slots import SPLITS, Axis, Split, slots_of
from influence_dag.datasets.sources import files
from influence_dag.datasets.sources.numbers import canonical
from influence_dag.datasets.sources.on_demand import Values
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.splits import check_precisions, load_splits
from influence_dag.errors import DataError, StoreError
from influence_dag.fingerprints import fingerprint, grid_keys
from influence_dag.stages import naming
from influence_dag.stages.blocks import Tile
from influence_dag.stages.class_order import check_words, of_unknown_order
from influence_dag.stages.dataset_layout import arrays_of, layout_of, stored_dtype
from influence_dag.stages.driver import Part, blocks_of, refresh_blocks, says
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.updates import Update, current_update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Draft, Layout, Version
from influence_dag.study.loading import place_of

FORMULA = FORMULAS["dataset"]
LOOKED_AT = 32 * 2**20  # bytes of files that are read before anything slow is imported
READINGS = 3  # how often files that change while they are read are read again


def refresh(bench: Workbench) -> Update:
    """Read both files, give every row a slot, store what changed.

    Files whose bytes are those of the stored version are not parsed.
    """
    source = _source_key(bench)
    if update := _same_source(bench, source):
        return update
    (train, test), source = _read(bench, source)
    tables: dict[Split, SplitRows] = {"train": train, "test": test}
    stored = bench.store.current(naming.DATASET)
    slotted = {}
    for split, table in tables.items():
        slotted[split] = _slots(bench, stored, split, table)
        bench.remember(slotted[split][0])
    axes = {split: axis for split, (axis, _, _) in slotted.items()}
    layout = layout_of(bench, tables, axes, source)
    parts = [
        _part(bench, layout, split, tables[split], axis, source)
        for split, (axis, source, _) in slotted.items()
    ]
    info = {split: vars(change) for split, (_, _, change) in slotted.items()}
    info["rows"] = {split: axis.count for split, (axis, _, _) in slotted.items()}
    try:
        notes = place_of(bench.study)
        return refresh_blocks(bench, naming.DATASET, layout, parts, info=info, notes=notes)
    finally:
        for table in tables.values():
            table.close()


def has_same_source(bench: Workbench) -> bool:
    """Whether the stored rows were read from files with these bytes, and are undamaged."""
    with suppress(StoreError):
        return _same_source(bench, _source_key(bench)) is not None
    return False


def look(bench: Workbench) -> None:
    """Raise what reading the rows would raise, where files have them and are small.

    Nothing is read that is stored already.
    """
    data, root = bench.settings.data, bench.study.root
    if data.makes_rows:
        return
    paths = [path for split in SPLITS for path in files(data, split, root).values()]
    if any(path.is_dir() for path in paths):
        return
    if sum(path.stat().st_size for path in paths) > LOOKED_AT:
        return
    with suppress(StoreError):  # what is damaged is mended by the refresh
        stored = bench.store.current(naming.DATASET)
        if stored is not None and _was_read(bench, stored, _source_key(bench)):
            return
    check_words(bench.settings, load_splits(data, root)[0])


def _read(bench: Workbench, key: str) -> tuple[tuple[SplitRows, SplitRows], str]:
    """The rows, and the key of the very bytes that they were read from.

    A file that is replaced between its hash and its reading would be published under the key of
    what it was: so it is hashed before and after, and read again until both agree.
    """
    for _ in range(READINGS):
        splits = bench.made_rows or load_splits(bench.settings.data, bench.study.root)
        check_words(bench.settings, splits[0])
        check_precisions(splits, bench.settings.compute.dtype)
        before, key = key, _source_key(bench)
        if key == before:
            return splits, key
    raise DataError(
        f"{bench.study.name}: the data files change while they are read (tried {READINGS} times); "
        "refresh again when they are written"
    )


def _source_key(bench: Workbench) -> str:
    """Stands for the files' bytes and all that decides how they are read and kept."""
    data, loss = bench.settings.data, bench.settings.model.loss
    if data.makes_rows:
        return ""  # what code returns is known when it was called
    content = source_fingerprint(data, bench.study.root)
    how = (data.reading, bench.chunk_override, bench.study.name, loss)
    return fingerprint(naming.DATASET, FORMULA, content, how)


def _same_source(bench: Workbench, source: str) -> Update | None:
    """The current version's update if it was made from the same bytes, and is undamaged."""
    stored = bench.undamaged(naming.DATASET)
    if stored is None or not _was_read(bench, stored, source):
        return None
    if not says(stored, place_of(bench.study)):  # which is to be noted
        return None
    info: dict[str, Any] = {split: vars(AxisChange()) for split in SPLITS}
    info["rows"] = {split: bench.axis_of(stored, split).count for split in SPLITS}
    return current_update(bench, naming.DATASET, kept=blocks_of(stored), info=info)


def _was_read(bench: Workbench, stored: Version, source: str) -> bool:
    """Whether a version is of these bytes, and what was looked at then is what would be now.

    A checkpoint that is given since asks for the order of words, which a fit does not.
    """
    is_same = bool(source) and stored.attrs.get("source_key") == source
    return is_same and not of_unknown_order(bench.settings, stored.attrs["classes"])


def _slots_before(bench: Workbench, current: Version | None, split: Split) -> Axis | None:
    """The slots that rows have; None before the first version, or when its labels are damaged."""
    try:
        return bench.axis_of(current, split) if current else None
    except StoreError:
        return None


def _slots(
    bench: Workbench, stored: Version | None, split: Split, table: SplitRows
) -> tuple[Axis, np.ndarray, AxisChange]:
    previous = _slots_before(bench, stored, split)
    if stored is None or previous is None:
        axis, source = fresh_axis(split, table.ids, _row_keys(table), table.labels, table.kept)
        return axis, source, AxisChange(added=len(axis))
    if table.on_demand:  # what is stored of them would have to be compared with rows read again
        return assign_slots(previous, table.ids, _row_keys(table), table.labels, table.kept)
    keys = np.zeros(len(table), np.uint64)
    slots = slots_of(table.ids, previous.ids)
    kept = previous.valid[np.maximum(slots, 0)] & _as_stored(stored, split, table, slots)
    keys[kept] = previous.keys[slots[kept]]
    keys[~kept] = _row_keys(table, np.flatnonzero(~kept))
    return assign_slots(previous, table.ids, keys, table.labels, table.kept)


def _row_keys(table: SplitRows, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """64 bits of each row's hash; 0 is left to holes."""
    keys = np.ascontiguousarray(table.row_keys(rows)[:, :8]).view("<u8").ravel()
    return np.where(keys == 0, np.uint64(1), keys)


def _as_stored(stored: Version, split: Split, table: SplitRows, slots: np.ndarray) -> np.ndarray:
    """Which rows stand at their slots bit by bit, so that their stored hashes are theirs."""
    same = slots >= 0
    if stored.verify() or stored.attrs.get("rows_formula") != FORMULA:
        return np.zeros_like(same)
    arrays = arrays_of(table, split)
    if arrays.keys() != {name for name in stored.variables if name.startswith(f"{split}_")}:
        return np.zeros_like(same)  # of other inputs, or with weights and without
    for name, values in arrays.items():
        kept, values = canonical(stored.read(name)), canonical(np.asarray(values))
        if kept.shape[1:] != values.shape[1:] or kept.dtype != values.dtype:
            return np.zeros_like(same)
        old, new = (
            np.ascontiguousarray(each).reshape(len(each), -1).view(np.uint64)
            for each in (kept[np.maximum(slots, 0)], values)
        )
        same &= (old == new).all(axis=1)
    return same


def _part(
    bench: Workbench, layout: Layout, split: Split, table: SplitRows, axis: Axis, source: np.ndarray
) -> Part:
    arrays = arrays_of(table, split)
    chunk = next(variable.chunks[0] for variable in layout.variables if variable.name in arrays)

    def compute(tile: Tile, draft: Draft) -> dict[str, np.ndarray]:
        rows = source[tile.start[0] : tile.stop[0]]
        return {name: _pick(values, rows, stored_dtype(values)) for name, values in arrays.items()}

    base = fingerprint(naming.DATASET, FORMULA, bench.settings.data.features.scale)
    keys = grid_keys(base, axis.digests(chunk))
    return Part(tuple(arrays), keys, here=compute, may_lack=True)  # sources look at every row


def _pick(values: Values, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows by position; holes (−1) are NaN, or 0 for integers."""
    present = rows >= 0
    if present.all():
        return values[rows].astype(dtype)
    picked = np.full((len(rows), *values.shape[1:]), np.nan if dtype.kind == "f" else 0, dtype)
    picked[present] = values[rows[present]]
    return picked
