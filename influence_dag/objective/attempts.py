"""What a check asks of a model of the caller's, which may raise anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from influence_dag.errors import ModelError


class NotRunError(Exception):
    """The model raises on what a check gave it: nothing can be told."""


@contextmanager
def attempted() -> Iterator[None]:
    """Whatever is raised inside is a `NotRunError`, but for a `ModelError`, which is told."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise NotRunError from error
