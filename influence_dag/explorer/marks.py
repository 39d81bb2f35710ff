"""What a person decided about training rows, kept in files beside the study's store.

`<study>.edits/marks.json` is the list at work; every export freezes it as a numbered edit in a
folder of its own, with what was predicted of it. The store itself is never written to.
"""

import json
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from influence_dag.addresses import folder_of
from influence_dag.errors import StoreError
from influence_dag.files import explained, write_atomically
from influence_dag.store.posix.locks import locked_anywhere
from influence_dag.study.places import project_around

ACTIONS = ("relabel", "drop", "keep")
LONGEST_NOTE = 2_000
PATIENCE = 10.0  # seconds for which another explorer may be writing
FORMAT = 1


class Marks:
    """Marks by training row's id; read anew for each question, written as a whole file."""

    def __init__(self, address: str):
        place = folder_of(address)
        self.folder = place and place.with_name(f"{place.name}.edits")
        self._held: dict[str, dict[str, Any]] = {}  # of a store that is in no folder
        self._one_at_a_time = threading.Lock()

    def all(self) -> dict[str, dict[str, Any]]:
        """Every mark, by id, as it is in the file now."""
        if self.folder is None:
            return dict(self._held)
        file = self.folder / "marks.json"
        return _checked(_json(file), file) if file.is_file() else {}

    def put(self, name: str, action: str | None, label: str | None = None, note: str = "") -> None:
        """Mark a row; no action takes its mark away."""
        if action is not None and action not in ACTIONS:
            raise StoreError(f"{action!r:.80} is no mark; there are {', '.join(ACTIONS)}")
        if action == "relabel" and not label:
            raise StoreError(f"{name}: a row that is relabelled needs its new label")
        if len(note) > LONGEST_NOTE:
            raise StoreError(f"a note has {len(note):,} characters; {LONGEST_NOTE:,} are kept")
        with self._writing():
            marks = self.all()
            marks.pop(name, None)
            if action is not None:
                named = {"label": label} if action == "relabel" else {}
                marks[name] = {"action": action, **named, "note": note}
            self._write(marks)

    def clear(self) -> None:
        """Begin anew; edits that were exported stay."""
        with self._writing():
            self._write({})

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only one who changes marks and edits: of threads, and of other explorers."""
        with self._one_at_a_time, self._alone():
            yield

    def _alone(self) -> AbstractContextManager[None]:
        if self.folder is None:
            return nullcontext()
        return locked_anywhere(
            self.folder / ".lock",
            timeout=PATIENCE,
            told=f"the list of marks in {self.folder}",
            cure="Try again when it is done",
        )

    def _write(self, marks: Mapping[str, dict[str, Any]]) -> None:
        if self.folder is None:
            self._held = dict(marks)
            return
        with explained(self.folder, "writing marks to"):
            content = json.dumps({"format": FORMAT, "marks": dict(marks)}, indent=1)
            write_atomically(self.folder / "marks.json", content.encode())

    @property
    def edits(self) -> list[int]:
        """Numbers of the edits that were exported, oldest first."""
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(int(each.name) for each in self.folder.iterdir() if each.name.isdigit())

    def freeze(self, files: Mapping[str, bytes]) -> int:
        """Export files as the next edit: the folder is there as a whole or not at all."""
        if self.folder is None:
            raise StoreError(
                "this store is in no folder, and an edit is exported beside a store's folder; open "
                "a study that is stored in one"
            )
        with self._writing(), explained(self.folder, "exporting an edit to"):
            number = max(self.edits, default=0) + 1
            draft = self.folder / f".{uuid.uuid4().hex}.partial"
            draft.mkdir()
            try:
                for name, content in files.items():
                    (draft / name).write_bytes(content)
                draft.rename(self.place(number))
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        return number

    @property
    def shown(self) -> str | None:
        """The folder as a person is told it: from the project's, where it is in one."""
        if self.folder is None:
            return None
        project = project_around(self.folder.parent)
        return str(self.folder.relative_to(project) if project else self.folder)

    def place(self, number: int) -> Path:
        if self.folder is None:
            raise StoreError("a store that is in no folder has no edits")
        return self.folder / f"{number:04d}"

    def edit(self, number: int) -> dict[str, Any]:
        """What is told of an edit that was exported."""
        if number not in self.edits:
            known = ", ".join(map(str, self.edits)) or "none"
            raise StoreError(f"there is no edit {number}; exported are {known}")
        file = self.place(number) / "edit.json"
        told = _json(file)
        _checked(told, file)
        return told


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}); mend it, or move it away to begin anew"
        ) from error


def _checked(told: Any, file: Path) -> dict[str, dict[str, Any]]:
    """Marks as this version writes them; what else a file holds is refused."""
    known = isinstance(told, dict) and told.get("format") == FORMAT
    marks = told.get("marks") if known else None
    if isinstance(marks, dict) and all(map(_is_mark, marks.values())):
        return marks
    raise StoreError(f"{file} holds no marks of this version; move it away to begin anew")


def _is_mark(mark: Any) -> bool:
    if not isinstance(mark, dict) or mark.get("action") not in ACTIONS:
        return False
    texts = [mark.get("note", ""), mark.get("label", "")]
    return all(isinstance(each, str) for each in texts)
