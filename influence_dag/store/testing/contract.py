"""All of the contract in one class."""

import pytest

from influence_dag.store.opening import open_store
from influence_dag.store.protocol import Store
from influence_dag.store.testing.damage import DamageContract
from influence_dag.store.testing.interruption import InterruptionContract
from influence_dag.store.testing.planning import PlanningContract
from influence_dag.store.testing.results import ResultsContract
from influence_dag.store.testing.sample import Backend
from influence_dag.store.testing.sharing import SharingContract
from influence_dag.store.testing.versions import VersionsContract
from influence_dag.store.testing.writing import WritingContract


class StoreContract(
    PlanningContract,
    WritingContract,
    VersionsContract,
    ResultsContract,
    DamageContract,
    InterruptionContract,
    SharingContract,
):
    """What every backend promises; see the classes for what it is about."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError("a backend's test class says where its store is to be")

    @pytest.fixture
    def store(self, backend: Backend) -> Store:
        return open_store(backend.address, lock_timeout=0.2)
