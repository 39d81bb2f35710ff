"""`pytest -p simulated_cuda.plugin`: the tests of this process see a CUDA device."""

from simulated_cuda import device

device.install()
