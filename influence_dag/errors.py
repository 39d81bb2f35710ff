"""The errors of this package: one family, each saying what was seen, the limit and the cure."""


class InfluenceDagError(Exception):
    """Base of every error that this package raises on purpose."""


class DataError(InfluenceDagError):
    """An input file, row or column is not what the study says it is."""


class StudyError(InfluenceDagError):
    """A study's settings are wrong, or name something that does not exist."""


class ModelError(InfluenceDagError):
    """A model, loss or checkpoint cannot be used for influence functions as it is.

    `row` is the position of the row that shows it, where it is one row's.
    """

    def __init__(self, message: str, *, row: int | None = None):
        super().__init__(message)
        self.row = row


class NotConvergedError(InfluenceDagError):
    """An iterative solve missed its tolerance."""


class IndefiniteError(InfluenceDagError):
    """`H + λI` is not positive definite.

    `smallest_eigenvalue` is that of `H`; `suggested_damping` is a λ that would do.
    """

    def __init__(self, message: str, *, smallest_eigenvalue: float, suggested_damping: float):
        super().__init__(message)
        self.smallest_eigenvalue = smallest_eigenvalue
        self.suggested_damping = suggested_damping


class StoreError(InfluenceDagError):
    """The array store is locked, read-only, damaged or lacks what was asked for."""
