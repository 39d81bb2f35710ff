"""What the artifacts of a method are called, and those of a study that have one name."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from influence_dag.store import Version

DATASET, MODEL, GRADIENTS, REPORT = "dataset", "model", "gradients", "report"

PERTURBATIONS = "perturbation_influences"
"""The array of perturbation influences, of several inputs the beginning of each array's name."""
LONGEST_PAIRS = "top_train"
"""Beside it, where a study keeps the longest pairs: the slots of the training rows."""
OF_INFLUENCES = "of_influences"
"""The attribute of what was measured on influences: by method, the data versions that these had."""

SYSTEM = ("model_data_version", "curvature_data_version", "damping", "method_settings")
"""Attributes that two artifacts of a method share whose numbers may stand beside each other."""


def curvature(method: str) -> str:
    return f"{method}/curvature"


def factors(method: str) -> str:
    return f"{method}/influence_factors"


def influences(method: str) -> str:
    return f"{method}/influences"


def perturbation(method: str) -> str:
    return f"{method}/{PERTURBATIONS}"


def summary(method: str) -> str:
    return f"{method}/summary"


def validation(kind: str) -> str:
    return f"validation/{kind}"


def array_name(tensor: str) -> str:
    """The array that a tensor of a module is stored as, which not every name of a module may be.

    >>> array_name("0.rows"), array_name("_fc.rows"), array_name(".rows")
    ('0.rows', '%5Ffc.rows', '%2Erows')
    """
    return re.sub(r"^[._]|[ /\\%]", lambda found: f"%{ord(found[0]):02X}", tensor)


def tensor_name(array: str) -> str:
    """What `array_name` was given."""
    return unquote(array)


def is_sampled(version: "Version", name: str) -> bool:
    """Whether an array is of a sample of the test rows; of the others it is NaN."""
    return name == "residual" and "sample" in version.array(name).attrs


def keeps_all(attrs: Mapping[str, Any]) -> bool:
    """Whether stored perturbation influences are of every pair and feature, by their attributes."""
    return not {"reduce", "pairs"} & attrs.keys()
