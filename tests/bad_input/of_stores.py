"""Stores that are damaged, foreign, or asked for what they do not have."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bad_input.kinds import Kind, Section, nothing, without
from tiny_project import Project

from influence_dag.errors import InfluenceDagError
from influence_dag.query.results import StudyResults, open_study
from influence_dag.store.manifests import sealed

NAME = "direct/influences"


def version(project: Project, artifact: str = NAME) -> Path:
    return (project.store / artifact / "current").resolve()


def damaged(name: str, edit: Callable[[bytes], bytes | None], artifact: str = NAME):
    """A file of an artifact's current version with other bytes, or gone."""

    def spoil(project: Project) -> None:
        path = version(project, artifact) / name
        content = edit(path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil


def instead(make: Callable[[Path], object], name: str, artifact: str = NAME):
    def spoil(project: Project) -> None:
        path = version(project, artifact) / name
        path.unlink()
        make(path)

    return spoil


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def gone(content: bytes) -> None:
    return None


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def exchanged(project: Project) -> None:
    one, other = (version(project) / f"influences/c.0.{k}" for k in (0, 1))
    kept = one.read_bytes()
    one.unlink()
    shutil.copy(other, one)
    other.unlink()
    other.write_bytes(kept)


def read(project: Project) -> None:
    open_study(project.store).open(NAME).load()


def ask(question: Callable[[StudyResults], object]) -> Callable[[Project], None]:
    return lambda project: question(open_study(project.store)) and None


def emptied(project: Project) -> None:
    for each in version(project).iterdir():
        without(each)


def without_versions(project: Project) -> None:
    """A copy of which somebody took only what looked like results."""
    for current in list(project.store.rglob("current")):
        copied = shutil.copytree(current.resolve(), current.with_name("copied"))
        current.unlink()
        shutil.rmtree(current.parent / "versions")
        Path(copied).rename(current)


def incomplete(project: Project) -> None:
    """No link, and no version of which every file is there."""
    (project.store / NAME / "current").unlink()
    for chunk in (project.store / NAME).rglob("c.0.0"):
        chunk.unlink()


def code_elsewhere(project: Project) -> None:
    (project.root / "pyproject.toml").unlink()


def edited_code(project: Project) -> None:
    project.write_model((project.root / "tiny_model.py").read_text() + "\nEDITED = 1\n")


def moved(artifact: str):
    return lambda project: without(project.store / artifact)


DAMAGE = [
    Kind("a chunk that is missing", damaged("influences/c.0.0", gone)),
    Kind("a truncated chunk", damaged("influences/c.0.0", half)),
    Kind("an empty chunk", damaged("influences/c.0.0", lambda content: b"")),
    Kind("a chunk with a bit flipped", damaged("influences/c.0.0", flip(20))),
    Kind("two chunks exchanged", exchanged),
    Kind("a FIFO for a chunk", instead(os.mkfifo, "influences/c.0.0")),
    Kind("a folder for a chunk", instead(Path.mkdir, "influences/c.0.0")),
    Kind("labels that are missing", damaged("train/c.0", gone)),
    Kind("labels with a bit flipped", damaged("train/c.0", flip(10))),
    Kind("metadata that are missing", damaged("zarr.json", gone)),
    Kind("truncated metadata", damaged("zarr.json", half)),
    Kind("metadata with a bit flipped", damaged("zarr.json", flip(30))),
    Kind("a manifest that is missing", damaged("manifest.json", gone)),
    Kind("an empty manifest", damaged("manifest.json", lambda content: b"")),
    Kind("a manifest that is a list", damaged("manifest.json", lambda content: b"[]")),
    Kind("a manifest with a bit flipped", damaged("manifest.json", flip(200))),
    Kind("a manifest of bytes", damaged("manifest.json", lambda content: bytes(range(256)))),
    Kind(
        "a manifest that nests 100,000 lists",
        damaged("manifest.json", lambda content: b"[" * 100_000),
    ),
    Kind("a folder for a manifest", instead(Path.mkdir, "manifest.json")),
    Kind("a FIFO for a manifest", instead(os.mkfifo, "manifest.json")),
    Kind(
        "a manifest of a format to come",
        damaged("manifest.json", lambda content: sealed({"format": 99})),
    ),
    Kind(
        "a manifest of an earlier format",
        damaged("manifest.json", lambda content: b'{"format": 2}'),
    ),
    Kind("bookkeeping that is missing", damaged("blocks.npz", gone)),
    Kind("bookkeeping with a bit flipped", damaged("blocks.npz", flip(80))),
    Kind("a version without files", emptied),
    Kind(
        "a damaged checkpoint",
        damaged("model.safetensors", flip(100), "model"),
        ask(lambda s: s.store.version("model").file("model.safetensors")),
    ),
    Kind("copies of which the versions were left out", without_versions),
    Kind("no link, and no version that is whole", incomplete),
]


def another(project: Project) -> None:
    """A folder of the same name, for something else."""
    shutil.copytree(project.folder, project.root / "assets" / "more" / "tiny")


QUESTIONS = [
    Kind(
        "a study of one name with the one whose results they are",
        another,
        lambda p: open_study(p.root / "assets" / "more" / "tiny"),
    ),
    Kind("a folder that there is not", nothing, lambda p: open_study(p.root / "data/nothing")),
    Kind("a folder without results", nothing, lambda p: open_study(p.root)),
    Kind("the folder of all studies", nothing, lambda p: open_study(p.store.parent)),
    Kind("a file", nothing, lambda p: open_study(p.root / "train.csv")),
    Kind("all of the file system", nothing, lambda p: open_study("/")),
    Kind("a misspelt study", nothing, lambda p: open_study(p.store.with_name("tinny"))),
    Kind("an artifact that there is not", nothing, ask(lambda s: s.open("direct/influence"))),
    Kind("an artifact that is a path", nothing, ask(lambda s: s.open("../tiny/model"))),
    Kind("an empty name", nothing, ask(lambda s: s.open(""))),
    Kind("a method that there is not", nothing, ask(lambda s: s["drect"])),
    Kind("a method that is a number", nothing, ask(lambda s: s[3])),
    Kind("perturbations that are not stored", nothing, ask(lambda s: s.perturbation("cg"))),
    Kind(
        "factors of a method that there is not",
        nothing,
        ask(lambda s: s.influence_factors("ekfac")),
    ),
    Kind("a version that is not kept", nothing, ask(lambda s: s.open(NAME, 7))),
    Kind(
        "versions of an artifact that there is not",
        nothing,
        ask(lambda s: s.versions("direct/influence")),
    ),
    Kind("a difference to a version that is not kept", nothing, ask(lambda s: s.diff(NAME, 7))),
    Kind("the strongest 0 rows", nothing, ask(lambda s: s["direct"].influences.idag.top_k(0))),
    Kind("the strongest 2.5 rows", nothing, ask(lambda s: s["direct"].influences.idag.top_k(2.5))),
    Kind(
        "the strongest of an array without training rows",
        nothing,
        ask(lambda s: s["direct"].influences.mean("train").idag.top_k(3)),
    ),
    Kind(
        "self-influence that is not stored",
        nothing,
        ask(lambda s: s["cg"].influences.idag.self_influence),
    ),
    Kind(
        "units of features that are not standardised",
        nothing,
        ask(lambda s: s.perturbation("direct").idag.per_unit()),
    ),
    Kind(
        "lazy numbers of a store outside any project",
        code_elsewhere,
        ask(lambda s: s.lazy_perturbation("direct")),
    ),
    Kind(
        "lazy numbers of code that was edited since",
        edited_code,
        ask(lambda s: s.lazy_perturbation("direct")),
    ),
    Kind(
        "lazy numbers of a method that there is not",
        nothing,
        ask(lambda s: s.lazy_perturbation("ekfac")),
    ),
    Kind(
        "lazy numbers without the stored model",
        moved("model"),
        ask(lambda s: s.lazy_perturbation("direct")),
    ),
    Kind(
        "shares of blocks that there are not",
        nothing,
        ask(lambda s: s.block_influences("direct", [["0.wieght"]])),
    ),
]

SECTIONS = [
    Section("Damaged stores", "reading what is stored", read, DAMAGE, finished=True),
    Section(
        "Questions to a store",
        "`idag.open_study` and what it returns",
        nothing,
        QUESTIONS,
        finished=True,
        told_as=(InfluenceDagError, ValueError),
    ),
]
