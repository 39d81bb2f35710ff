"""Where a store is: a folder's path, `memory://name`, `s3://bucket/prefix`, another backend's."""

import re
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(address: str | Path) -> str:
    """Which backend an address is of; empty for a path.

    >>> scheme_of("memory://scratch"), scheme_of("data/store")
    ('memory', '')
    """
    match = _SCHEME.match(address) if isinstance(address, str) else None
    return match[1] if match else ""


def folder_of(address: str | Path) -> Path | None:
    """The folder that an address is the path of; None where it is no path."""
    return None if scheme_of(address) else Path(address)


def below(address: str | Path, name: str) -> str:
    """The address of something in what an address names.

    >>> below("memory://scratch", "digits"), below("data/store", "digits")
    ('memory://scratch/digits', 'data/store/digits')
    """
    folder = folder_of(address)
    return str(folder / name) if folder else f"{str(address).rstrip('/')}/{name}"


def above(address: str) -> str:
    """The address of what something is in.

    >>> above("memory://scratch/digits"), above("/data/digits")
    ('memory://scratch', '/data')
    """
    folder = folder_of(address)
    return str(folder.parent) if folder else address.rpartition("/")[0]
