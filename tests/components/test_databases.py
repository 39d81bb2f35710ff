"""While tests run, each of Dagster's databases has one engine, whoever connects to it."""

import databases
import pytest
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sql import ScriptDirectory, get_alembic_config
from sqlalchemy.pool import NullPool, QueuePool

MODULES = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_who_connects_again_has_the_same_engine(module, tmp_path):
    assert module.__name__ in databases.STORAGES
    address, other = (f"sqlite:///{tmp_path}/{name}.db" for name in "ab")
    engine = module.create_engine(address, poolclass=NullPool)
    assert module.create_engine(address, poolclass=NullPool) is engine
    assert module.create_engine(other, poolclass=NullPool) is not engine
    waiting = module.create_engine(address, poolclass=NullPool, connect_args={"timeout": 30})
    assert waiting is not engine
    assert waiting.url == engine.url


def test_an_engine_that_keeps_connections_is_not_shared(tmp_path):
    with pytest.raises(AssertionError, match="not to be shared"):
        sqlite_event_log.create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=QueuePool)


def test_migrations_are_read_once():
    config = get_alembic_config(sqlite_event_log.__file__)
    assert ScriptDirectory.from_config(config) is ScriptDirectory.from_config(config)
