"""What is told of named code from its source is what importing it says, and nothing else is."""

import sys

import pytest

from influence_dag.errors import StudyError
from influence_dag.objective.modules import import_callable
from influence_dag.study.named_code import look_for

FILES = {
    "plain_code.py": "import os\n\n\ndef build(): ...\n\n\ndef other():\n    inner = 1\n",
    "broken_code.py": "def build(:\n",
    "hidden_code.py": "globals()['bu' + 'ild'] = print\n",
    "starred_code.py": "from os.path import *\n",
    "asked_code.py": "def __getattr__(name):\n    return print\n",
    "outer_code/__init__.py": "",
    "outer_code/inner.py": "from plain_code import build\n",
    "pathed_code/__init__.py": "__path__.append(__path__[0] + '/more')\n",
    "pathed_code/more/deep.py": "def build(): ...\n",
    "registered_code/__init__.py": (
        "import sys, types\n"
        "made = sys.modules['registered_code.made'] = types.ModuleType('made')\n"
        "made.build = print\n"
    ),
    "given_code.py": "import giving_code\n",
    "giving_code.py": "import given_code\ngiven_code.build = print\n",
    "open_code/deep/within.py": "def build(): ...\n",
}

TOPS = {name.partition("/")[0].removesuffix(".py") for name in FILES}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in loaded():
        del sys.modules[name]


def loaded() -> list[str]:
    """The modules of these files that are imported."""
    return [name for name in sys.modules if name.partition(".")[0] in TOPS]


def said(call, *arguments) -> str:
    with pytest.raises(StudyError) as told:
        call(*arguments)
    return str(told.value)


@pytest.mark.parametrize(
    "name",
    [
        "plain_code:lost",
        "plain_code:biuld",
        "plain_code:innner",
        "plain_code.deeper:build",
        "no_such_code:build",
        "broken_code:build",
        "outer_code.inner:bild",
        "outer_code.lost:build",
        "outer_code.lost.more:build",
        "open_code.deep.lost:build",
        "open_code.lost:build",
    ],
)
def test_what_is_not_there_is_told_in_the_words_of_an_import(root, name):
    early = said(look_for, name, root, "model.build")
    assert not loaded()
    assert early == said(import_callable, name, root, "model.build")


@pytest.mark.parametrize(
    "name",
    [
        "plain_code:build",
        "outer_code.inner:build",
        "open_code.deep.within:build",
        "hidden_code:build",
        "starred_code:join",
        "asked_code:anything",
        "pathed_code.deep:build",
        "registered_code.made:build",
        "given_code:build",
        "os.path:join",
        "math:sqrt",
        "sklearn.datasets:load_digits",
    ],
)
def test_what_an_import_finds_is_not_refused(root, name):
    look_for(name, root, "model.build")
    assert callable(import_callable(name, root, "model.build"))
