"""`python -m influence_dag`, and the program `influence-dag`."""

from influence_dag.cli.endings import INTERRUPTED
from influence_dag.cli.main import main

__all__ = ["INTERRUPTED", "main"]

if __name__ == "__main__":
    main()
