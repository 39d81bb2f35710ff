"""What a shell completes: names in the store that was typed before."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem


def _known(ctx: click.Context, names: Callable[[str], list[str]], begun: str) -> list:
    from influence_dag.errors import InfluenceDagError

    try:
        store = ctx.params.get("store") or next(iter(ctx.args), "")  # an option without its value
        known = names(str(store))
    except (InfluenceDagError, OSError):
        return []
    return [CompletionItem(name) for name in known if name.startswith(begun)]


def _artifacts(store: str) -> list[str]:
    from influence_dag.query.results import open_study

    return open_study(store).artifacts


def _methods(store: str) -> list[str]:
    from influence_dag.query.results import open_study

    return open_study(store).methods


def artifacts(ctx: click.Context, _: click.Parameter, incomplete: str) -> list:
    return _known(ctx, _artifacts, incomplete)


def methods(ctx: click.Context, _: click.Parameter, incomplete: str) -> list:
    return _known(ctx, _methods, incomplete)
