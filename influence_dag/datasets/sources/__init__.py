"""Files and data sets as they are: named arrays, and how to speak of one of their rows.

Every format comes out as a `Source`; what a study demands of it is checked in `datasets`.
"""

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.read import files, read_source

__all__ = ["Source", "files", "read_source"]
