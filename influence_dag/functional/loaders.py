"""Data loaders read as rows: twice, because influences belong to rows that stay what they are."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from influence_dag.errors import ModelError
from influence_dag.objective.rows import Rows, batch_rows
from influence_dag.structures import tensors_of
from influence_dag.texts import a_kind

_DIGEST_BYTES = 12


def read_rows(loader: Iterable[Any], *, what: str, ordered: bool = True) -> Rows:
    """All rows of a loader, which gives the same ones when it is read again.

    `what` names the loader in errors. Raises `ModelError` for a data set that draws anew
    (augmentation, dropout in a transform), and, where influences are labelled by the `ordered`
    position of a row, for a loader that shuffles; and as `Rows.from_loader` does. An iterator,
    which can be read once only, is taken as it is, and so are tensors at hand in torch's own loader
    that neither shuffles nor collates otherwise: nothing is drawn there. The global random numbers
    of torch are left as they were.
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ModelError(f"{what} is {a_kind(loader)}; wanted a data loader, or a list of (x, y)")
    at_hand = _at_hand(loader)
    if at_hand is not None:
        return Rows.from_loader([at_hand])  # a copy, as rows of any loader are
    with torch.random.fork_rng():
        rows = Rows.from_loader(loader)
        if iter(loader) is not loader:
            _check_again(rows, loader, what, ordered)
    return rows


def _at_hand(loader: Iterable[Any]) -> tuple[Tensor, ...] | None:
    """The tensors whose rows a loader gives as they stand, one after the other; else None.

    Torch's own classes alone: a subclass may do anything with a row or with their order.
    """
    if type(loader) is not DataLoader or type(loader.dataset) is not TensorDataset:
        return None
    sampler, batches = loader.sampler, loader.batch_sampler
    if type(sampler) is not SequentialSampler or sampler.data_source is not loader.dataset:
        return None
    if type(batches) is not BatchSampler or batches.sampler is not sampler:
        return None
    tensors = loader.dataset.tensors
    plain = all(type(t) is Tensor and t.layout is torch.strided for t in tensors)
    if loader.collate_fn is not default_collate or loader.num_workers or not plain:
        return None
    size, given = batches.batch_size, len(tensors[0])
    rows = given // size * size if batches.drop_last else given
    known = rows > 0 and len(tensors) in (2, 3) and not any(t.requires_grad for t in tensors)
    return tuple(t[:rows] for t in tensors) if known else None


def _check_again(rows: Rows, loader: Iterable[Any], what: str, ordered: bool) -> None:
    """Compare the rows with what the loader gives now; they are hashed only where one moved."""
    start, batches = 0, iter(loader)
    moved: list[Any] = []
    for batch in batches:
        again = batch_rows(batch)
        if not len(again):
            continue
        if start + len(again) > len(rows) or not _same(rows[start : start + len(again)], again):
            moved = [again]
            break
        start += len(again)
    if moved or start < len(rows):
        first = list(_digests([rows]))
        _compare(first, [*first[:start], *_digests(chain(moved, batches))], what, ordered)


def _same(one: Rows, other: Rows) -> bool:
    """To the last bit, NaNs included."""
    pairs = list(zip_longest(_bytes(one), _bytes(other)))
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def _compare(first: list[bytes], second: list[bytes], what: str, ordered: bool) -> None:
    pairs = zip_longest(first, second)
    row = next((k for k, (one, other) in enumerate(pairs) if one != other), None)
    if row is None:  # what has moved holds no number
        return
    if sorted(first) != sorted(second):
        raise ModelError(
            f"{what} gives other rows when it is read again ({len(first)} rows, then "
            f"{len(second)}; row {row} differs): its data set draws at random. Influences are of "
            "rows that stay what they are: switch the augmentation off, or keep what was drawn",
            row=row,
        )
    if ordered:
        raise ModelError(
            f"{what} gives its rows in another order when it is read again (from row {row} on): "
            "results would not be labelled by their rows; use shuffle=False",
            row=row,
        )


def _digests(batches: Iterable[Any]) -> Iterator[bytes]:
    """A hash of each row's tensors, in the order in which they come."""
    for batch in batches:
        rows = batch_rows(batch)
        arrays = [leaf.numpy() for leaf in _bytes(rows)] if len(rows) else []
        for parts in zip(*arrays, strict=True):
            digest = blake2b(digest_size=_DIGEST_BYTES)
            for part in parts:
                digest.update(part.tobytes())
            yield digest.digest()


def _bytes(rows: Rows) -> list[Tensor]:
    leaves = (leaf.detach().cpu() for leaf in tensors_of((rows.x, rows.y, rows.weights)))
    plain = (leaf.resolve_conj().resolve_neg().contiguous() for leaf in leaves)
    return [leaf.reshape(len(rows), -1).view(torch.uint8) for leaf in plain]
