"""The command line: `influence-dag materialize assets/digits`."""

from influence_dag.cli.main import main

__all__ = ["main"]
