"""Ids and names of columns as they are shown, whatever is in them; sizes as people say them."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

LONGEST = 60  # characters; beyond that a name is no name any more


def literal(name: object, longest: int = LONGEST) -> str:
    r"""A name as it is, on one line, cut where it is long.

    What is not printed (control characters, such as those that move a terminal's cursor) is shown
    as Python writes it.

    >>> literal("a\nb"), literal("$_{2}$"), literal("x" * 99, longest=4)
    ('a\\nb', '$_{2}$', 'xxx…')
    """
    seen = "".join(
        each if each.isprintable() else repr(each)[1:-1] for each in str(name)[: longest + 1]
    )
    return seen if len(seen) <= longest else seen[: longest - 1] + "…"


def listed(names: Iterable[Any], most: int = 8, *, shown: Callable[[Any], str] = literal) -> str:
    """The first few names, and how many more there are.

    >>> listed(["a", "b", "c"], 2), listed([])
    ('a, b and 1 more', 'nothing')
    """
    every = [*names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(shown, every[:most])) + more or "nothing"


def code(name: object) -> str:
    """The same for Markdown, where only text between backticks means nothing else."""
    return f"`{literal(name, 200).replace('`', 'ˋ')}`"


def a_kind(value: object) -> str:
    """What a value is, in a sentence.

    >>> a_kind(3), a_kind([]), a_kind(None)
    ('an int', 'a list', 'None')
    """
    name = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if name[0].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'direct'?`, or nothing where no known name is like this one.

    >>> did_you_mean("drect", ["direct", "cg"]), did_you_mean("x", ["direct"])
    ("; did you mean 'direct'?", '')
    """
    folded = {other.casefold(): other for other in known}
    close = [repr(folded[key]) for key in get_close_matches(name.casefold(), folded, n=3)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def short(value: object) -> str:
    """A number in the digits that a person may type to ask for it; anything else as it is.

    >>> short(5.000000000000001e-11), short(0.1), short({"head": 0.1})
    ('5e-11', '0.1', "{'head': 0.1}")
    """
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


def readable_bytes(size: int) -> str:
    """A number of bytes as a person would say it.

    >>> readable_bytes(64 * 2**20)
    '64 MiB'
    """
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    unit, worth = next(((unit, worth) for unit, worth in units.items() if size >= worth), ("B", 1))
    return f"{size / worth:,.4g} {unit}"


def left_behind(error: BaseException) -> str:
    """What to do where code has mixed devices, as an end of its error's sentence; else nothing.

    >>> left_behind(RuntimeError("Expected all tensors to be on the same device"))[:32]
    '; a tensor that is no parameter '
    >>> left_behind(RuntimeError("shapes differ"))
    ''
    """
    if "on the same device" not in str(error):
        return ""
    return (
        "; a tensor that is no parameter stays where it was made: let a module have it as a buffer "
        "(register_buffer), which is moved with it, bring it to what it meets (.to(x.device)), or "
        "compute on the processor (device: cpu)"
    )


def encodable(text: str) -> str:
    r"""Text that has an encoding: names of files that are no text keep their bytes as `\udcff`."""
    return text.encode(errors="backslashreplace").decode()
