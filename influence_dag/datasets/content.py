"""What stands for the content of all files of a study."""

from pathlib import Path

from influence_dag.datasets.sources import files, pictures
from influence_dag.datasets.sources.digests import FileDigests
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.splits import load_splits
from influence_dag.files import files_behind
from influence_dag.fingerprints import fingerprint
from influence_dag.study.base import Split, is_callable_name
from influence_dag.study.data import DataSettings


def source_fingerprint(
    data: DataSettings,
    root: Path,
    *,
    remembered: Path | None = None,
    made: tuple[SplitRows, SplitRows] | None = None,
) -> str:
    """Content hash of all files, byte for byte; of the rows where a callable makes them.

    A file that joins those that match a pattern is another content.

    `remembered` is a file that keeps the hashes by size and time of modification, so that files
    that were not touched are not read again. `made` are the rows, where a callable makes some and
    they have been read.
    """
    if made is None and data.makes_rows:
        made = load_splits(data, root)
    digests = FileDigests(remembered)
    train, test = made or (None, None)
    content = fingerprint(
        _content(data, "train", root, digests, train), _content(data, "test", root, digests, test)
    )
    digests.save()
    return content


def _content(
    data: DataSettings, which: Split, root: Path, digests: FileDigests, split: SplitRows | None
) -> str:
    if split is not None and is_callable_name(data.names(which)[0]):
        kept = {name: list(map(str, values)) for name, values in split.kept.items()}
        return fingerprint(list(map(str, split.ids)), split.row_keys(), split.classes, kept)
    return fingerprint(
        {
            f"{name}/{inside.relative_to(path)}": digests[inside]
            for name, path in (files(data, which, root) | pictures(data, which, root)).items()
            for inside in (map(Path, files_behind(path)) if path.is_dir() else [path])
            if inside.is_file()
        }
    )
