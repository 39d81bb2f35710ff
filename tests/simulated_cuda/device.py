"""A CUDA device for a torch without CUDA: tensors that are called cuda:0, in the host's memory.

`install()` makes one for the rest of the process. Operations are done by the processor's kernels,
and refused where CUDA refuses them: operands on two devices, generators of another device, numpy of
what is on the device. Its generators draw other numbers than the processor's from the same seed.
What it cannot show: kernels, speed, memory, and the order of what runs at the same time.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
FREE, TOTAL = 8 << 30, 16 << 30  # bytes, as `mem_get_info` has them
SIMULATED = SimpleNamespace(
    name="simulated", total_memory=TOTAL, major=9, minor=0, multi_processor_count=1
)


def why_not() -> str:
    """Why none can be made here; empty where one can."""
    if torch.cuda.is_available():
        return "torch has a CUDA device, on which the tests run as they are"
    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        return f"no C++ compiler ({cpp_extension.get_cxx_compiler()}; CXX names another)"
    return ""


def install() -> None:
    """Load what is built, and let `torch.cuda` say that there is a device."""
    torch.ops.load_library(str(built()))
    cuda: Any = torch.cuda
    generator = torch.ops.simulated_cuda.default_generator()
    for name, value in _SAID.items():
        setattr(cuda, name, value)
    cuda._initialized, cuda.default_generators = True, (generator,)
    cuda.manual_seed = cuda.manual_seed_all = generator.manual_seed
    torch.serialization.register_package(1, lambda storage: None, _restored)
    storage: Any = torch.UntypedStorage
    storage.clone = _cloned(storage.clone)


def counts() -> dict[str, int]:
    """Calls on the device so far, by name, with those of copies: `host to device`, and back."""
    return dict(torch.ops.simulated_cuda.counts())


def built() -> Path:
    """The library, compiled where it has not been from these files against this torch."""
    sources = sorted(HERE.glob("*.cpp")) + sorted(HERE.glob("*.h"))
    key = hashlib.sha256(torch.__version__.encode())
    for source in sources:
        key.update(source.read_bytes())
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    library = root / "simulated_cuda" / f"{key.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            half = Path(folder) / library.name
            _compile(half)
            half.replace(library)
    return library


def _compile(library: Path) -> None:
    folders = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [
        *(cpp_extension.get_cxx_compiler(), "-std=c++20", "-O0", "-fPIC", "-shared", "-w"),
        *(*folders, str(HERE / "simulated_cuda.cpp"), "-o", str(library)),
        *(*libraries, "-lc10", "-ltorch_cpu", "-ltorch"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the simulated device does not compile:\n{done.stderr[-3000:]}")


class Stream:
    """The only one there is: all is done when it was asked for."""

    def __init__(self, device: Any = None, priority: int = 0):
        self.device = torch.device("cuda", 0)

    def _done(self, other: Any = None) -> None:
        """What waits for others has nothing to wait for."""

    wait_stream = wait_event = record_event = synchronize = _done


class Event:
    """Of the only stream: it has happened."""

    def __init__(self, **options: Any):
        self.options = options

    def record(self, stream: Any = None) -> None:
        """Note that it has happened."""

    wait = synchronize = record


_SAID: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "_exchange_device": lambda index: 0,
    "_maybe_exchange_device": lambda index: 0,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "mem_get_info": lambda device=None: (FREE, TOTAL),
    "memory_reserved": lambda device=None: 0,
    "memory_allocated": lambda device=None: 0,
    "get_device_name": lambda device=None: SIMULATED.name,
    "get_device_capability": lambda device=None: (SIMULATED.major, SIMULATED.minor),
    "get_device_properties": lambda device=None: SIMULATED,
    "Stream": Stream,
    "Event": Event,
    "stream": lambda stream: nullcontext(),
    "current_stream": Stream,
    "default_stream": Stream,
}


def _on_device(storage: Any) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _restored(storage: Any, location: str) -> Any:
    """A storage of a file that was saved on the device, or is wanted there; None: another's."""
    if not location.startswith("cuda"):
        return None
    return _on_device(storage).to("cuda").untyped_storage()


def _cloned(plain: Any) -> Any:
    def clone(storage: Any) -> Any:
        """Storages are made by torch's own name of a device, of which this one is none."""
        if storage.device.type != "cuda":
            return plain(storage)
        return _on_device(storage).clone().untyped_storage()

    return clone
