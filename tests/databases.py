"""Dagster's databases, opened cheaply while tests run.

For each connection, and a recorded run has 400, Dagster makes an engine of its own, which compiles
every statement anew and keeps no connection; for each instance it reads its migrations again. Here
an engine is made once for each database and the migrations are read once: a quarter of the
processor time of a recorded run. What is asked of the databases, and when, stays as it is.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MIGRATIONS = "alembic.script"
_prepared: set[str] = set()


def prepare() -> None:
    """Of what has been imported by now: a test that runs nothing does not import Dagster."""
    if "dagster" not in sys.modules:
        return
    from influence_dag.components.databases import STORAGES

    for name in (*STORAGES, MIGRATIONS):
        if name in sys.modules and name not in _prepared:
            _prepared.add(name)
            module: Any = sys.modules[name]
            if name == MIGRATIONS:
                scripts = module.ScriptDirectory
                scripts.from_config = lru_cache(maxsize=8)(scripts.from_config)
            else:
                module.create_engine = one_for_each_database(module.create_engine)


def one_for_each_database(create_engine: Callable) -> Callable:
    """The same function, which makes an engine without connections once for each address."""
    from sqlalchemy.pool import NullPool

    @lru_cache(maxsize=64)
    def made(address: str, arguments: tuple) -> Any:
        return create_engine(address, poolclass=NullPool, connect_args=dict(arguments))

    def create(address: str, *, poolclass: type, connect_args: dict[str, Any] | None = None) -> Any:
        if poolclass is not NullPool:  # one that keeps connections is not to be shared
            return create_engine(address, poolclass=poolclass, connect_args=connect_args or {})
        return made(address, tuple((connect_args or {}).items()))

    return create
