"""What the tests of stages share: processes that come up fast."""

from collections.abc import Iterator

import pytest
from study_faults import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()
