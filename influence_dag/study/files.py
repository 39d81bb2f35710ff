"""A `defs.yaml` as it is read: values, nodes with their lines, and what is wrong with the file."""

from pathlib import Path
from typing import Any

import yaml

from influence_dag.errors import StudyError
from influence_dag.study.base import ENVIRONMENT

LARGEST = 100_000  # values; anchors within anchors make billions of a few lines
TEMPLATES = ("{{", "{%", "{#")  # what Jinja looks for
MOST_DIGITS = 400  # of a whole number; Python itself reads up to 4,300


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """The values of a YAML file, and its nodes, which know their lines.

    Raises `StudyError` for what is not UTF-8 or not YAML, for a key that stands twice in one group
    (YAML would silently take the last), for anchors that unfold into too many values, and for
    templates and what else would make Dagster run code when it looks at the file.
    """
    try:
        nodes = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if nodes is None:
            return None, None
        _check(path, nodes)
        _check_top(path, nodes)
        return yaml.SafeLoader("").construct_document(nodes), nodes
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path} is not a text file in UTF-8: {error}; save it as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise StudyError(_not_yaml(path, error)) from error
    except RecursionError as error:
        raise StudyError(
            f"{path} has lists or groups within one another without an end; settings are few"
        ) from error
    except (ValueError, OverflowError) as error:  # of its numbers and dates
        raise StudyError(f"{path} has a value that cannot be read: {error!s:.200}") from error


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    """What the parser says, with the line where it says it."""
    mark = getattr(error, "problem_mark", None)
    said = [getattr(error, name, None) for name in ("context", "problem")]
    if mark is None or said[1] is None:
        return f"{path} is not YAML: {' '.join(str(error).split()):.300}"
    return f"{path}:{mark.line + 1}: not YAML: {', '.join(filter(None, said)):.300}"


def _check(path: Path, nodes: yaml.Node) -> None:
    sizes: dict[int, int] = {}  # by node: what is anchored is looked at once
    if _size(path, nodes, sizes) > LARGEST:
        raise StudyError(
            f"{path} unfolds into more than {LARGEST:,} values by its anchors (&, *); settings are "
            "few: write them out"
        )


def _size(path: Path, node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node unfolds into; keys that stand twice are refused on the way."""
    if id(node) not in sizes:
        sizes[id(node)] = LARGEST + 1  # of a node that contains itself
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.ScalarNode):
            _check_text(path, node)
            children = []
        else:
            children = node.value
        sizes[id(node)] = 1 + sum(_size(path, child, sizes) for child in children)
    return sizes[id(node)]


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise StudyError(
                f"{path}:{line}: a key is a list or a group; names of settings are text"
            )
        if key.value in lines and key.value != "<<":
            raise StudyError(
                f"{path}:{line}: {key.value!r} is given twice, first on line {lines[key.value]}; "
                "keep one of them"
            )
        lines[key.value] = line


def _check_text(path: Path, node: yaml.ScalarNode) -> None:
    """Refuse templates but `{{ env.NAME }}`: Dagster would fill them in, by any code."""
    if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
        line, digits = node.start_mark.line + 1, len(node.value)
        raise StudyError(f"{path}:{line}: a number of {digits:,} digits; none has so many")
    rest = ENVIRONMENT.sub("", node.value)
    if found := next((mark for mark in TEMPLATES if mark in rest), None):
        line = node.start_mark.line + 1
        raise StudyError(
            f"{path}:{line}: {node.value!r:.120} has {found}, which begins a template; settings "
            "mean what they say, wherever they are read: write the value itself, or {{ env.NAME }} "
            "for a variable of the environment"
        )


def _check_top(path: Path, node: yaml.Node) -> None:
    """Refuse a module of template variables, which Dagster would import to fill in templates."""
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value == "template_vars_module":
            line = key.start_mark.line + 1
            raise StudyError(
                f"{path}:{line}: {key.value} names variables of templates, which a study does not "
                "have; remove the line"
            )
