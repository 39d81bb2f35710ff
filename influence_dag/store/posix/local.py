"""A version's folder as Zarr and xarray open it, each file checked as it is read."""

from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from influence_dag.store.checked import CheckedAtHand

if TYPE_CHECKING:
    from influence_dag.store.posix.folders import Folder


class CheckedFolder(CheckedAtHand["Folder"], LocalStore):
    """A folder, read-only, whose files are checked as they are read."""

    def __init__(self, contents: "Folder", **options: Any) -> None:
        super().__init__(contents, contents.path, **options)

    def can_read(self, key: str) -> bool:
        """A pipe would be waited for."""
        return (self.root / key).is_file()
