"""The settings' file, as it should not be."""

from bad_input.kinds import Kind, Section, defs, load, settings
from tiny_project import Project

from influence_dag.study.loading import load_study


def attribute(line: str):
    """A line more among the attributes, as a person would type it."""
    return defs(lambda text: text.replace("attributes:\n", f"attributes:\n  {line}\n"))


def bomb(text: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    return "\n".join(lines) + "\n" + text


def itself(text: str) -> str:
    return text.replace("attributes:\n", "attributes: &all\n  again: *all\n")


def folder_instead(project: Project) -> None:
    (project.folder / "defs.yaml").unlink()
    (project.folder / "defs.yaml").mkdir()


def renamed(name: str):
    def spoil(project: Project) -> None:
        project.folder.rename(project.folder.with_name(name))

    return spoil


def load_named(name: str):
    return lambda project: load_study(project.folder.with_name(name))


FILES = [
    Kind("no `defs.yaml`", lambda p: (p.folder / "defs.yaml").unlink()),
    Kind("a folder called `defs.yaml`", folder_instead),
    Kind("an empty file", defs(lambda text: "")),
    Kind("a list instead of settings", defs(lambda text: "[1, 2]")),
    Kind(
        "`attributes` is a list",
        defs(lambda text: text.split("attributes")[0] + "attributes: [1]\n"),
    ),
    Kind("no `attributes`", defs(lambda text: text.split("attributes")[0])),
    Kind("another component's `type`", defs(lambda text: text.replace("InfluenceStudy", "Other"))),
    Kind("latin-1 instead of UTF-8", defs(lambda text: b"# caf\xe9\n" + text.encode())),
    Kind("a byte of 0", defs(lambda text: text + "x: \0\n")),
    Kind(
        "a tab for indentation",
        defs(lambda text: text.replace("attributes:\n", "attributes:\n\tdamping: 1\n")),
    ),
    Kind("a bracket that is not closed", attribute("damping: [1")),
    Kind("a quote that is not closed", attribute("damping: '1")),
    Kind("two documents", defs(lambda text: text + "---\n" + text)),
    Kind("a key given twice", attribute("damping: 1\n  damping: 2")),
    Kind("a list as a key", attribute("? [a, b]\n  : 1")),
    Kind("a number as a key", attribute("7: 1")),
    Kind("anchors that unfold into 10¹² values", defs(bomb)),
    Kind("an anchor within itself", defs(itself)),
    Kind("a thousand brackets in one another", attribute(f"damping: {'[' * 1000}{']' * 1000}")),
    Kind("a number of 5,000 digits", attribute(f"damping: {'9' * 5000}")),
    Kind("the 30th of February", attribute("damping: 2024-02-30")),
    Kind("a Python object", attribute("damping: !!python/object/apply:os.system [ls]")),
    Kind("a template", attribute("damping: '{{ 1 + 1 }}'")),
    Kind(
        "a module of template variables", defs(lambda text: f"template_vars_module: .vars\n{text}")
    ),
    Kind(
        "a setting that is indented too little",
        defs(lambda text: text.replace("attributes:\n", "damping: 1\nattributes:\n")),
    ),
    Kind(
        "`atributes` for `attributes`", defs(lambda text: text.replace("attributes:", "atributes:"))
    ),
    Kind(
        "a variable that the environment lacks",
        settings(data={"train": "{{ env.NOT_SET_ANYWHERE }}"}),
    ),
    Kind("a study called `my-study`", renamed("my-study"), load_named("my-study")),
    Kind("a study with an accent", renamed("étude"), load_named("étude")),
    Kind("a study with a space", renamed("my study"), load_named("my study")),
]

SECTIONS = [
    Section(
        "The settings' file", "a study's folder: the commands, `load_study`, Dagster", load, FILES
    ),
]
