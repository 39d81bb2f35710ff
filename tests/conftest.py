"""Settings of every test: repeatable random numbers, no clock in hypothesis, no user's Dagster."""

import os
import tempfile

import pytest
import torch
from hypothesis import settings

settings.register_profile("influence_dag", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("influence_dag")

# Before anything imports dagster: tests neither read the user's instance nor report anywhere.
os.environ["DAGSTER_HOME"] = tempfile.mkdtemp(prefix="dagster-home-")
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
