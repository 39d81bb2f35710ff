"""docs/commands.md: every command with its arguments and options, from the commands themselves.

`python -m influence_dag.cli.reference > docs/commands.md`
"""

import sys

import click

from influence_dag.cli.main import main

HEAD = """# Commands

Made from the program itself (`make commands`); [what one does with them](command-line.md).
"""


def page() -> str:
    context = click.Context(main, info_name="influence-dag")
    sections = [_section(main.commands[name], context) for name in main.list_commands(context)]
    return "\n".join([HEAD, *sections])


def _section(command: click.Command, parent: click.Context) -> str:
    context = click.Context(command, info_name=str(command.name), parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    said = "\n\n".join(
        " ".join(each.split()) for each in (command.help or "").split("\f")[0].split("\n\n")
    )
    records = [each.get_help_record(context) for each in command.get_params(context)]
    rows = [f"| `{name}` | {_cell(told)} |" for name, told in filter(None, records)]
    table = "\n".join(["| option | |", "| --- | --- |", *rows])
    return f"## `{command.name}`\n\n```text\n{usage}\n```\n\n{_cell(said)}\n\n{table}\n"


def _cell(text: str) -> str:
    """Help as markdown shows it literally."""
    return text.replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
