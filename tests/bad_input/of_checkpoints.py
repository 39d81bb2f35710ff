"""Checkpoints that cannot be loaded, or do not fit."""

import io
import json
import os

import torch
from bad_input.kinds import Kind, Section, all_of, file, refresh, settings
from safetensors.torch import save


def checkpoint(content, name: str = "theta.safetensors"):
    return all_of(
        file(name, content), settings(damping=0.5, model={"fit": None, "checkpoint": name})
    )


def tensors(**changes) -> dict[str, torch.Tensor]:
    found = {
        "0.weight": torch.zeros(4, 3),
        "0.bias": torch.zeros(4),
        "2.weight": torch.zeros(3, 4),
        "2.bias": torch.zeros(3),
    }
    changed = {name.replace("_", "."): value for name, value in changes.items()}
    return {name: value for name, value in (found | changed).items() if value is not None}


def pickled(value) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def large() -> bytes:
    """A tensor of 80 TB, of which nothing is there."""
    told = {"dtype": "F32", "shape": [2 * 10**13], "data_offsets": [0, 8 * 10**13]}
    said = json.dumps({"0.weight": told}).encode()
    return len(said).to_bytes(8, "little") + said


class Hostile:
    def __reduce__(self):
        return os.getpid, ()


CHECKPOINTS = [
    Kind(
        "no such checkpoint", settings(damping=0.5, model={"fit": None, "checkpoint": "theta.pt"})
    ),
    Kind("an empty checkpoint", checkpoint(b"")),
    Kind("a truncated checkpoint", checkpoint(save(tensors())[:200])),
    Kind("a checkpoint that says it has 80 TB", checkpoint((2**46).to_bytes(8, "little") + b"{}")),
    Kind("a tensor that says it has 80 TB", checkpoint(large())),
    Kind(
        "a checkpoint that is a folder",
        lambda p: [
            (p.root / "theta.pt").mkdir(),
            p.write_settings(damping=0.5, model={"fit": None, "checkpoint": "theta.pt"}),
        ],
    ),
    Kind(
        "a checkpoint that is a FIFO",
        lambda p: [
            os.mkfifo(p.root / "theta.safetensors"),
            p.write_settings(damping=0.5, model={"fit": None, "checkpoint": "theta.safetensors"}),
        ],
    ),
    Kind(
        "a pickled checkpoint that is a FIFO",
        lambda p: [
            os.mkfifo(p.root / "theta.pt"),
            p.write_settings(damping=0.5, model={"fit": None, "checkpoint": "theta.pt"}),
        ],
    ),
    Kind(
        "a checkpoint that is a device",
        settings(damping=0.5, model={"fit": None, "checkpoint": "/dev/zero"}),
    ),
    Kind("a checkpoint of another model", checkpoint(save({"a": torch.zeros(3)}))),
    Kind(
        "a checkpoint of another shape",
        checkpoint(save(tensors(**{"2_weight": torch.zeros(5, 4), "2_bias": None}))),
    ),
    Kind(
        "a checkpoint with NaN",
        checkpoint(save(tensors(**{"0_bias": torch.full((4,), float("nan"))}))),
    ),
    Kind("a checkpoint of no tensors", checkpoint(save({}))),
    Kind("a truncated `.pt`", checkpoint(pickled(tensors())[:300], "theta.pt")),
    Kind("a text called `.pt`", checkpoint("hello", "theta.pt")),
    Kind("a whole module, pickled", checkpoint(lambda: pickled(torch.nn.Linear(3, 3)), "theta.pt")),
    Kind("a pickle that runs code", checkpoint(lambda: pickled(Hostile()), "theta.pt")),
    Kind("a `.pt` of numbers", checkpoint(pickled({"epoch": 3}), "theta.pt")),
    Kind(
        "a `.pt` of complex numbers",
        checkpoint(
            pickled(tensors(**{"0_bias": torch.zeros(4, dtype=torch.complex64)})), "theta.pt"
        ),
    ),
    Kind(
        "a `.pt` of sparse tensors",
        checkpoint(pickled(tensors(**{"0_weight": torch.zeros(4, 3).to_sparse()})), "theta.pt"),
    ),
    Kind(
        "a `.pt` of tensors without numbers",
        checkpoint(
            lambda: pickled(tensors(**{"0_bias": torch.zeros(4, device="meta")})), "theta.pt"
        ),
    ),
    Kind("HDF5", checkpoint(b"\x89HDF\r\n\x1a\n" + bytes(64), "theta.h5")),
]

SECTIONS = [
    Section("Checkpoints", "`model.checkpoint`", refresh, CHECKPOINTS),
]
