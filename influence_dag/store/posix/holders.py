"""Who holds a lock: what a process notes of itself, and whether it is there still."""

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_OUTSIDE = "pid:[4026531836]"  # of containers: Linux gives its first namespace this number


def this_process() -> dict[str, Any]:
    """What tells this process from any other, on this machine and elsewhere."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.ctime(),
        "machine": _line("/etc/machine-id"),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),  # pids of a container are its own
        "began": _own_beginning(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def named(holder: Mapping[str, Any]) -> str:
    """A process, as it has noted itself (`this_process`); empty for none that has."""
    known = {"pid", "host", "since"} <= holder.keys()
    return "process {pid} on {host} (since {since})".format_map(holder) if known else ""


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine, and is no more; of others nobody knows.

    Its pid says so while the machine runs, and where it has been started anew its name and number:
    outside containers, whose copies on other machines may have the same.
    """
    here = this_process()
    if not all(holder.get(name) and here[name] for name in ("boot", "processes")):
        return False
    if holder["processes"] != here["processes"]:
        return False
    if holder["boot"] == here["boot"]:
        return _began(holder.get("pid")) != holder.get("began")
    same = all(holder.get(name) and holder[name] == here[name] for name in ("host", "machine"))
    return same and here["processes"] == _OUTSIDE


@cache  # every lock that is taken says it
def _line(path: str) -> str:
    """What a file of the system says, which it goes on saying; empty where there is none."""
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


@lru_cache(maxsize=1)
def _own_beginning(pid: int) -> str:
    return _began(pid)


def _began(pid: object) -> str:
    """When a process began, in ticks since the machine did; empty for none that is there."""
    with suppress(OSError, IndexError, ValueError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
