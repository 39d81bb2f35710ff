"""The contract of a store, as tests that every backend inherits: `class TestMine(StoreContract)`.

Its fixture `backend` gives a `Backend`: where an empty store is to be, and how a file of a version
is harmed. All else is asked of what `open_store(address)` gives. pytest is imported here and
nowhere else in the package, and nothing of the package imports this.
"""

from influence_dag.store.testing.contract import StoreContract
from influence_dag.store.testing.sample import (
    NAME,
    Backend,
    Edit,
    Sample,
    published,
    refresh,
    write_chunk,
)

__all__ = [
    "NAME",
    "Backend",
    "Edit",
    "Sample",
    "StoreContract",
    "published",
    "refresh",
    "write_chunk",
]
