"""Memory that this process may still take: of the machine, and of the control groups it is in.

Containers and batch systems give less than the machine has, and end who takes more.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")
# The mount below the root, and the files of a group: its limit, what is taken, and what of that is
# kept of files and given back.
_KINDS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def free_memory(root: Path = _ROOT) -> int | None:
    """In bytes; None where the system says nothing. `root` is the file system's."""
    known = [*_of_the_machine(root), *_of_groups(root)]
    return max(0, min(known)) if known else None


def _of_the_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        yield 1024 * _fields(root / "proc/meminfo")["MemAvailable"]


def _of_groups(root: Path) -> Iterator[int]:
    """What each group of ours, and those around it, have left; no limit is none."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            kind = next((each for each in _KINDS if each in controllers.split(",")), None)
            if kind is not None:
                mount, *files = _KINDS[kind]
                group = Path(path.lstrip("/"))  # in a container those around it alone may be seen
                for each in (group, *group.parents):
                    yield from _left(root / mount / each, *files)


def _left(group: Path, limit: str, taken: str, kept: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # not seen from here, or "max"
        most, now = (int((group / name).read_text()) for name in (limit, taken))
        yield most - now + _fields(group / "memory.stat").get(kept, 0)


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
