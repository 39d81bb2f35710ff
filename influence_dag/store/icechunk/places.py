"""Where repositories lie: a bucket of S3, or a folder that stands for one.

Icechunk keeps versions; what lies beside them (which artifacts there are, who writes, what was seen
of the objects) is read and written here, through fsspec.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.addresses import scheme_of
from influence_dag.errors import StoreError
from influence_dag.store.icechunk.leases import leased
from influence_dag.store.posix.locks import locked
from influence_dag.store.versioned import DEEPEST, Report, is_part

if TYPE_CHECKING:
    from icechunk import Storage

REPOSITORY = "versions"  # below an artifact, of which no part is called so
SCHEMES = {"s3": ("s3fs",), "icechunk+file": ()}  # and the packages that they need
_KEPT = ("chunks", "manifests", "snapshots")  # of a repository's objects, those that never change


@dataclass(frozen=True)
class Place:
    """Objects below an address, `s3://bucket/prefix/study` or `icechunk+file:///path/study`."""

    address: str

    @cached_property
    def files(self) -> Any:
        """The file system of fsspec that the address is of; listings are always new."""
        import fsspec

        if scheme_of(self.address) == "s3":
            return fsspec.filesystem("s3", use_listings_cache=False)
        return fsspec.filesystem("file", auto_mkdir=True)

    def at(self, name: str) -> str:
        """Something below the address, as the file system calls it."""
        root = self.address.partition("://")[2].rstrip("/")
        return f"{root}/{name}" if name else root

    def storage(self, artifact: str) -> "Storage":
        """What Icechunk opens the repository of an artifact by."""
        import icechunk

        path = self.at(f"{artifact}/{REPOSITORY}")
        if scheme_of(self.address) != "s3":
            return icechunk.local_filesystem_storage(path)
        bucket, _, prefix = path.partition("/")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return icechunk.s3_storage(
            bucket=bucket, prefix=prefix, region=region, from_env=True, **_endpoint()
        )

    def artifacts(self, below: str = "") -> list[str]:
        """The artifacts that have a repository."""
        found = []
        for each in self._folders(below):
            name = f"{below}/{each}" if below else each
            if each == REPOSITORY and below:
                found.append(below)
            elif is_part(each) and name.count("/") < DEEPEST:
                found += self.artifacts(name)
        return sorted(found)

    def beside(self, artifact: str) -> list[str]:
        """Names of the studies next to this one that have such an artifact."""
        above, _, mine = self.address.rpartition("/")
        names = {mine, *Place(above)._folders("")}
        has = (name for name in names if self.files.exists(self._beside(name, artifact)))
        return sorted(has)

    def _beside(self, study: str, artifact: str) -> str:
        above = self.at("").rpartition("/")[0]
        return f"{above}/{study}/{artifact}/{REPOSITORY}"

    def _folders(self, below: str) -> list[str]:
        try:
            found = self.files.ls(self.at(below), detail=True)
        except FileNotFoundError:
            return []
        names = (each["name"] for each in found if each["type"] == "directory")
        return [name.rstrip("/").rpartition("/")[2] for name in names]

    def tags(self, artifact: str) -> dict[str, int]:
        """Of a repository, by one listing: Icechunk reads each that there ever was, gone or not.

        Each with a number for the object that it is: another in a repository that was made anew.
        """
        refs = self.at(f"{artifact}/{REPOSITORY}/refs")
        found = self.files.find(refs, detail=True)
        parts = ((*path.rsplit("/", 2)[1:], (path, about)) for path, about in found.items())
        files = [(ref[4:], file, entry) for ref, file, entry in parts if ref.startswith("tag.")]
        gone = {tag for tag, file, _ in files if file == "ref.json.deleted"}
        there = {tag: _number(entry) for tag, file, entry in files if file == "ref.json"}
        return {tag: there[tag] for tag in sorted(there.keys() - gone)}

    def objects(self, artifact: str) -> np.ndarray:
        """A number for each object of a repository: others for one that is replaced."""
        return np.fromiter(map(_number, self._listed(artifact)), np.uint64)

    def _listed(self, artifact: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for kind in _KEPT:
            path = self.at(f"{artifact}/{REPOSITORY}/{kind}")
            yield from self.files.find(path, detail=True).items()

    def read(self, name: str) -> bytes | None:
        try:
            return self.files.cat_file(self.at(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self.files.pipe_file(self.at(name), content)

    def locked(
        self, artifact: str, file: str, *, timeout: float, report: Report
    ) -> AbstractContextManager[None]:
        """Be the only one until the block ends."""
        path = f"{self.at(artifact)}/{file}"
        told = f"{self.address}/{artifact}"
        if scheme_of(self.address) != "s3":
            return locked(Path(path), timeout=timeout, report=report, told=told)
        return leased(self.files, path, told=told, timeout=timeout, report=report)


def check_place(address: str) -> None:
    """A `StoreError` for an address that is none, or whose packages are not installed."""
    scheme = scheme_of(address)
    lacking = [name for name in ("icechunk", *SCHEMES[scheme]) if not find_spec(name)]
    if lacking:
        raise StoreError(
            f"{address} needs {' and '.join(lacking)}, which is not installed; pip install "
            "'influence-dag[icechunk]', or give the path of a folder"
        )
    path = address.partition("://")[2].rstrip("/")
    if scheme == "s3" and not path.partition("/")[0]:
        raise StoreError(f"{address} names no bucket; write s3://bucket/prefix")
    if scheme != "s3" and (not path.startswith("/") or path == "/"):
        raise StoreError(f"{address} is no absolute path; write {scheme}:///folder")


def _endpoint() -> dict[str, Any]:
    """Of servers that are not Amazon's, as their tools are told of them."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    url = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if url is None:
        return {}
    return {"endpoint_url": url, "allow_http": url.startswith("http://"), "force_path_style": True}


def _number(entry: tuple[str, dict[str, Any]]) -> int:
    name, about = entry
    seen = (
        name.rpartition("/")[2],
        about.get("size"),
        about.get("ETag"),
        about.get("mtime"),
        about.get("ino"),
    )
    return int.from_bytes(blake2b(repr(seen).encode(), digest_size=8).digest(), "little")
