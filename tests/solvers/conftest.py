import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    # Thousands of products with small matrices: a second thread only waits for the first.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
