"""Checkpoints of a module: read as people save them, written as safetensors.

Read are `.safetensors` and what `torch.save` writes (`.pt`, `.pth`, `.bin`, `.ckpt`), a state dict
or a mapping with one in it. Of the latter only tensors and plain values are unpickled.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.texts import listed

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTINGS = ("state_dict", "model_state_dict", "model")  # under which training loops keep it
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
SHOWN = 5  # names that an error lists of each kind


def save_checkpoint(module: nn.Module) -> bytes:
    """Parameters and buffers as the bytes of a safetensors file."""
    return save({name: value.clone() for name, value in state_of(module).items()})


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Copy a checkpoint's tensors into the module, in the module's precision.

    Raises `ModelError` naming what is missing, unexpected, of another shape or not finite.
    """
    fill(module, _read(path), str(path))


def load_state(module: nn.Module, content: bytes, name: str) -> None:
    """The same from the bytes of a safetensors file; `name` says where they are from."""
    fill(module, load(content), name)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _read(path: Path) -> Any:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ModelError(f"{path}: not a readable checkpoint: it is no file")
    if path.suffix in PICKLED:
        return _unpickled(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        others = ", ".join(PICKLED)
        raise ModelError(
            f"{path}: not a readable safetensors file: {error} (what torch.save wrote is known by "
            f"its ending: {others})"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats of old; what is read is checked below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: not a readable checkpoint: no such file") from error
    except Exception as error:  # whatever an unpickler meets
        raise ModelError(
            f"{path}: not a readable checkpoint: {_said(error):.300}; only tensors and plain "
            "values are unpickled: save the state dict, torch.save(model.state_dict(), path), not "
            "the module"
        ) from error


def _said(error: Exception) -> str:
    """The cause in a line; torch's own names ways of loading code that nobody vouches for."""
    holds = re.search(r"GLOBAL (\S+)", str(error))
    if holds:
        return f"it holds a {holds[1]}"
    said = next(iter(str(error).strip().splitlines()), "")
    said, name = said.partition(". ")[0], type(error).__name__  # advice for other programs follows
    return said if " " in said else f"{name} {said}".strip()


def fill(module: nn.Module, content: Any, name: str) -> None:
    """Copy a state dict, or one inside a mapping, into the module; `name` stands in errors."""
    wanted = state_of(module)
    stored = _named_as(wanted, _state_dict(content, name))
    complaints = _complaints(wanted, stored, module)
    if complaints:
        raise ModelError(
            f"{name} does not fit {type(module).__name__}: {'; '.join(complaints)}; "
            "load the checkpoint of the module that model.build returns"
        )
    module.load_state_dict(stored, strict=False)  # what may be missing has been decided above


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    """The mapping of names to tensors in what was read."""
    seen = content
    for _ in range(len(NESTINGS)):
        if _is_state_dict(seen):
            return dict(seen)
        inside = [key for key in NESTINGS if isinstance(seen, Mapping) and key in seen]
        if not inside:
            break
        seen = seen[inside[0]]
    found = (
        f"a mapping with {listed(map(str, seen), SHOWN, shown=repr)}"
        if isinstance(seen, Mapping)
        else seen
    )
    found = found if isinstance(found, str) else f"a {type(found).__name__}"
    raise ModelError(
        f"{name} holds {found}; wanted a state dict (names and tensors), as it is or under "
        f"{', '.join(NESTINGS)}: torch.save(model.state_dict(), path)"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(each, Tensor) for each in value.values())
    )


def _named_as(wanted: Mapping[str, Tensor], stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored tensors without what wrappers put into names, where the module has none of it."""
    for _ in PREFIXES:
        for prefix in PREFIXES:
            ours = any(key.startswith(prefix) for key in wanted)
            if not ours and stored and all(key.startswith(prefix) for key in stored):
                stored = {key.removeprefix(prefix): value for key, value in stored.items()}
    if not any("_orig_mod." in key for key in wanted):  # of a compiled layer, inside a name
        stored = {key.replace("_orig_mod.", ""): value for key, value in stored.items()}
    return stored


def _complaints(
    wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], module: nn.Module
) -> list[str]:
    missing = [key for key in wanted if key not in stored and not _may_lack(key, stored, module)]
    shared = [key for key in wanted if key in stored]
    kinds = (
        [f"{key} is missing (wanted {_shape(wanted[key])})" for key in missing],
        [f"{key} is unexpected {_shape(stored[key])}" for key in stored if key not in wanted],
        [
            f"{key} has shape {_shape(stored[key])}, the module's is {_shape(wanted[key])}"
            for key in shared
            if stored[key].shape != wanted[key].shape
        ],
        [
            f"{key} is {seen}"
            for key in stored
            if (seen := _not_numbers(stored[key], wanted.get(key)))
        ],
    )
    return [
        complaint
        for kind in (kinds if any(kinds) else [_stored_apart(stored, module)])
        for complaint in (*kind[:SHOWN], *([f"{len(kind) - SHOWN} more"] if kind[SHOWN:] else ()))
    ]


def _stored_apart(stored: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Names of one tensor of the module under which other numbers are stored: one would be lost."""
    names: dict[tuple[Any, ...], str] = {}  # a view of it in another order has other numbers
    live = {key: value for key, value in module.state_dict().items() if value.numel()}
    return [
        f"{first} and {key} are one tensor of the module, and differ"
        for key, value in live.items()
        if key in stored
        and (first := names.setdefault((value.data_ptr(), value.shape, value.stride()), key)) != key
        and not stored[first].equal(stored[key].to(stored[first]))
    ]


def _not_numbers(value: Tensor, ours: Tensor | None) -> str | None:
    """Why a tensor is no array of finite real numbers; None where it is one.

    A mask of attention is -∞ where the module's own is.
    """
    if value.is_meta:
        return "on the meta device, without numbers"
    if value.layout != torch.strided or value.is_complex() or value.is_quantized:
        return f"{value.dtype}, {value.layout}; wanted a dense tensor of real numbers"
    finite = value.isfinite()
    if ours is not None and ours.shape == value.shape:
        finite |= value == ours
    return None if finite.all() else "not finite"


def _may_lack(key: str, stored: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether a name need not be stored: a tied weight's other name, a count of batches."""
    if key.rpartition(".")[2] == "num_batches_tracked":
        return True
    live = module.state_dict()
    return any(
        other in stored and live[other].data_ptr() == live[key].data_ptr() and live[key].numel() > 0
        for other in live
        if other != key and live[other].shape == live[key].shape
    )


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
