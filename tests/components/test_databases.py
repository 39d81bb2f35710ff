"""Dagster's databases have one engine each: while tests run, and in a run of the command line."""

import sqlite3
from contextlib import closing
from sqlite3 import dbapi2

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sql import ScriptDirectory, get_alembic_config
from sqlalchemy import text
from sqlalchemy.pool import NullPool, QueuePool

from influence_dag.components.console import recorded_or_forgotten
from influence_dag.components.databases import STORAGES, kept_open

MODULES = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_who_connects_again_has_the_same_engine(module, tmp_path):
    assert module.__name__ in STORAGES
    address, other = (f"sqlite:///{tmp_path}/{name}.db" for name in "ab")
    engine = module.create_engine(address, poolclass=NullPool)
    assert module.create_engine(address, poolclass=NullPool) is engine
    assert module.create_engine(other, poolclass=NullPool) is not engine
    waiting = module.create_engine(address, poolclass=NullPool, connect_args={"timeout": 30})
    assert waiting is not engine
    assert waiting.url == engine.url


def test_an_engine_that_keeps_connections_is_not_shared(tmp_path):
    address = f"sqlite:///{tmp_path}/a.db"
    engines = [sqlite_event_log.create_engine(address, poolclass=QueuePool) for _ in range(2)]
    assert engines[0] is not engines[1]


def test_migrations_are_read_once():
    config = get_alembic_config(sqlite_event_log.__file__)
    assert ScriptDirectory.from_config(config) is ScriptDirectory.from_config(config)


# In a run of the command line


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_database_stays_open_until_the_run_has_ended(module, tmp_path):
    assert module.__name__ in STORAGES
    create, log = module.create_engine, tmp_path / "a.db-wal"
    with kept_open():
        for number in range(3):
            engine = module.create_engine(f"sqlite:///{log.with_suffix('.db')}", poolclass=NullPool)
            with engine.connect() as connection, connection.begin():
                connection.execute(text("PRAGMA journal_mode = WAL"))
                connection.execute(text(f"CREATE TABLE t{number} (n)"))
            engine.dispose()
            assert log.exists()
            assert engine.pool.checkedin() == 1
            with closing(sqlite3.connect(log.with_suffix(".db"))) as another:
                (seen,) = another.execute("SELECT count(*) FROM sqlite_master").fetchone()
            assert seen == number + 1
    assert not log.exists()
    assert module.create_engine is create


def test_of_blocks_that_overlap_the_last_one_leaves_dagster_as_it_was():
    """As two threads have them, of which the first to begin is the first to end."""
    create = sqlite_event_log.create_engine
    first, second = kept_open(), kept_open()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sqlite_event_log.create_engine is not create
    second.__exit__(None, None, None)
    assert sqlite_event_log.create_engine is create


def test_a_recorded_history_is_opened_a_few_times_and_left_closed(tmp_path, monkeypatch):
    opened, connect = [], dbapi2.connect
    monkeypatch.setattr(dbapi2, "connect", lambda *a, **k: opened.append(a) or connect(*a, **k))
    with recorded_or_forgotten(tmp_path) as instance:
        for _ in range(5):
            instance.get_runs(limit=1)
            instance.get_latest_materialization_event(dg.AssetKey("a"))
            instance.report_runless_asset_event(dg.AssetMaterialization("a"))
    assert instance.get_latest_materialization_event(dg.AssetKey("a"))
    assert 0 < len(opened) <= 16  # two at a time while each of four is made
    assert not list(tmp_path.rglob("*-wal"))
