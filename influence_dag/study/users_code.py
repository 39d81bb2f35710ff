"""Code that a study names: what it raises is told with the setting that names it, and its line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from influence_dag.errors import InfluenceDagError, ModelError, StudyError
from influence_dag.study.module_files import INSTALLED
from influence_dag.texts import left_behind
from influence_dag.unchanged import ChangedError

_OWN, _PYTHON = Path(__file__).parents[1], Path(traceback.__file__).parent


@contextmanager
def named_by(
    setting: str, wanted: str, kind: type[InfluenceDagError] = ModelError
) -> Iterator[None]:
    """What the code behind a setting raises, as an error of a kind that says what was `wanted`.

    `SystemExit` as well, which would end the program as if all were well.
    """
    try:
        yield
    except (InfluenceDagError, ChangedError):
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        cure = left_behind(error)
        raise kind(f"{setting} ended in {said:.500}{place_of(error)}; {wanted}{cure}") from error


def ended(error: SystemExit) -> StudyError:
    """The error for a program that code of a study wanted to end."""
    return StudyError(
        f"code that the study names ended the program (SystemExit: {error}){place_of(error)}; "
        "nothing that it was computing is stored: let it return, or raise an error"
    )


def place_of(error: BaseException) -> str:
    """` (model.py:7)`: the last line of people's own code that an error came through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        others = path.is_relative_to(_OWN) or path.is_relative_to(_PYTHON)
        if path.is_file() and not others and not set(INSTALLED) & set(path.parts):
            return f" ({path}:{frame.lineno})"
    return ""
