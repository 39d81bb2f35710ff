"""Looking at a study runs nothing: templates and modules of variables are refused, alike by both.

Both: the command line, and Dagster when it loads the definitions.
"""

import itertools
from pathlib import Path

import dagster as dg
import pytest
import yaml

from influence_dag.errors import StudyError
from influence_dag.study.loading import load_study

HEAD = "type: influence_dag.components.InfluenceStudy\nattributes:\n"
BODY = """\
  data: {train: a.csv, test: b.csv, id: id}
  model: {build: "m:build", fit: {weight_decay: 0.1}}
  methods: {direct: {}}
"""
STORE = "  store:\n    path: "
PYPROJECT = """\
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "NAME"
code_location_target_module = "NAME"
defs_module = "NAME"
"""
PLACES = {
    "a path": "  store: {path: 'store/TEMPLATE'}\n",
    "a column": "  perturbation: {methods: [direct], wrt: 'TEMPLATE'}\n",
    "a setting of another type": "  damping: 'TEMPLATE'\n",
    "an unknown setting": "  nonsense: 'TEMPLATE'\n",
    "a key": "  'TEMPLATE': 1\n",
    "tags of assets": (
        "post_processing: {assets: [{target: '*', attributes: {tags: {a: 'TEMPLATE'}}}]}\n"
    ),
    "a target of tags": (
        "post_processing: {assets: [{target: 'TEMPLATE', attributes: {tags: {a: b}}}]}\n"
    ),
    "a module of variables": "template_vars_module: MODULE\n",
}
_numbers = itertools.count()


class Studies:
    """A project of Dagster's with one study, whose name no other test has imported."""

    def __init__(self, root: Path, more: str):
        self.root, self.name = root, f"templated_{next(_numbers)}"
        self.mark = root / "ran"
        self.folder = root / self.name / "tiny"
        self.folder.mkdir(parents=True)
        (root / self.name / "__init__.py").touch()
        (root / "pyproject.toml").write_text(PYPROJECT.replace("NAME", self.name))
        variables = f"{self.name}_variables"
        (root / f"{variables}.py").write_text(f"open({str(self.mark)!r}, 'w')\n")
        command = f"{{{{ cycler.__init__.__globals__.os.mkdir('{self.mark}') }}}}"
        more = more.replace("TEMPLATE", command.replace("'", "''")).replace("MODULE", variables)
        (self.folder / "defs.yaml").write_text(HEAD + BODY + more)

    def assets(self) -> set[dg.AssetKey]:
        """What Dagster finds in the project."""
        found = dg.load_from_defs_folder(project_root=self.root)
        return set(found.resolve_asset_graph().get_all_asset_keys())


@pytest.fixture
def studies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda more: Studies(tmp_path, more)


@pytest.mark.parametrize("place", PLACES)
def test_nothing_runs_and_both_refuse_with_the_line(studies, place):
    made = studies(PLACES[place])
    line = 1 + (HEAD + BODY).count("\n")
    with pytest.raises(StudyError, match=rf"defs\.yaml:{line}: ") as told:
        load_study(made.folder)
    with pytest.raises(Exception, match=r"Error while loading component tiny") as raised:
        made.assets()
    seen = [str(error) for error in _causes(raised.value)]
    if place not in ("a setting of another type", "an unknown setting", "a key"):
        assert str(told.value) in seen
    assert not made.mark.exists()


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("text", ["{{ HOME }}", "{% if true %}a{% endif %}", "a{# b #}"])
def test_every_kind_of_template_is_told_with_its_text(studies, text):
    made = studies(STORE + yaml.safe_dump(text, default_style='"'))
    with pytest.raises(StudyError, match=r"begins a template; .* write the value itself"):
        load_study(made.folder)


def test_a_variable_of_the_environment_means_the_same_to_both(studies, monkeypatch):
    monkeypatch.setenv("INFLUENCE_PLACE", "elsewhere")
    made = studies(STORE + yaml.safe_dump("a/{{ env.INFLUENCE_PLACE }}"))
    stored = Path(load_study(made.folder).store_address)
    assert stored == made.root / "a/elsewhere/tiny"
    found = dg.load_from_defs_folder(project_root=made.root).resolve_asset_graph()
    metadata = found.get(dg.AssetKey(["tiny", "dataset"])).metadata["store"]
    assert metadata.value == str(stored / "dataset")


def test_a_variable_that_is_not_set_is_told(studies, monkeypatch):
    monkeypatch.delenv("INFLUENCE_PLACE", raising=False)
    made = studies(STORE + yaml.safe_dump("{{ env.INFLUENCE_PLACE }}"))
    with pytest.raises(StudyError, match="no variable INFLUENCE_PLACE; set it"):
        load_study(made.folder)


@pytest.mark.parametrize("name", ["a{b}", "$x_{2}$", "{", "%}", "#", "{}", "}}"])
def test_braces_that_are_no_template_are_text_to_both(studies, name):
    made = studies(STORE + yaml.safe_dump(name, default_style='"'))
    stored = Path(load_study(made.folder).store_address)
    found = dg.load_from_defs_folder(project_root=made.root).resolve_asset_graph()
    metadata = found.get(dg.AssetKey(["tiny", "dataset"])).metadata["store"]
    assert metadata.value == str(stored / "dataset") == str(made.root / name / "tiny/dataset")


def test_tags_that_dagster_gives_to_assets_are_not_in_the_way(studies):
    more = "post_processing: {assets: [{target: '*', attributes: {tags: {team: vision}}}]}\n"
    made = studies(more)
    assert load_study(made.folder).name == "tiny"
    assert dg.AssetKey(["tiny", "dataset"]) in made.assets()
