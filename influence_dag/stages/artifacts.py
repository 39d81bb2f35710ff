"""What is declared of an artifact: what it reads, how it is made, checked and shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from influence_dag.errors import StudyError
from influence_dag.stages.allocation import keep_freed_memory
from influence_dag.study.loading import check_alone
from influence_dag.study.opened import naming_files
from influence_dag.study.study import Study
from influence_dag.study.users_code import ended
from influence_dag.unchanged import ChangedError, watching

if TYPE_CHECKING:
    from influence_dag.stages.checks import Outcome
    from influence_dag.stages.updates import Update
    from influence_dag.stages.workbench import Workbench
    from influence_dag.store import Version

TRIES = 3  # at an artifact whose code or checkpoint is edited meanwhile


def _function(name: str, home: str) -> Any:
    """`module:function`, or a function of the module where those of this package are."""
    return resolve_name(name if ":" in name else f"influence_dag.{home.format(name)}")


@dataclass(frozen=True)
class Promise:
    """A check: a function of `stages.checks` that is given a workbench and these arguments.

    What fails stops what is downstream.
    """

    name: str
    function: str
    arguments: tuple[str, ...]
    description: str

    def outcome(self, bench: "Workbench") -> "Outcome":
        with bench.modes():
            return _function(self.function, "stages.checks:{}")(bench, *self.arguments)


@dataclass(frozen=True)
class Picture:
    """What is shown of a version: a function of `query.drawn`, and the names of what it draws."""

    function: str
    names: tuple[str, ...]

    def drawn(
        self, bench: "Workbench", version: "Version", method: str | None
    ) -> dict[str, str | list[dict[str, str]]]:
        """By name: Markdown, or a table as its rows. Some versions have nothing to show."""
        return _function(self.function, "query.drawn:{}")(bench, version, method)


@dataclass(frozen=True)
class Artifact:
    """One node of the graph: an artifact, everything that it reads, and the stage that makes it.

    `stage` is a module of `influence_dag.stages` with a `refresh`, or any `module:function`,
    imported when it runs and not before: describing the graph stays free of torch. `argument` is
    the method (or the kind of matrix) that this node is about, `formula` the version of what the
    stage computes, `settings` the parts of the study's settings that the numbers depend on.
    """

    name: str
    reads: tuple[str, ...]
    stage: str
    formula: int
    kinds: frozenset[str]
    description: str
    settings: tuple[str, ...]
    argument: str | None = None
    heavy: bool = False
    checks: tuple[Promise, ...] = ()
    picture: Picture | None = None

    @property
    def method(self) -> str | None:
        """The method that the artifact belongs to, if it belongs to one."""
        return self.argument if self.name.startswith(f"{self.argument}/") else None

    def settings_of(self, study: Study) -> dict[str, Any]:
        """The settings that the numbers depend on; those of later stages are left out."""
        dumped = study.settings.model_dump(mode="json")
        return {
            path.rpartition(".")[2]: self._setting(study, dumped, path) for path in self.settings
        }

    def _setting(self, study: Study, dumped: Mapping[str, Any], path: str) -> Any:
        if path == "data":
            return study.settings.data.reading
        if path == "model":  # `minimum` is only a check
            return {name: each for name, each in dumped["model"].items() if name != "minimum"}
        if path == "method":
            return dumped["methods"][self.method]
        setting: Any = dumped
        for part in path.split("."):
            setting = setting[part]
        return setting

    def refresh(self, bench: "Workbench") -> "Update":
        """Bring the artifact up to date, with code and files that stay as they are meanwhile."""
        keep_freed_memory()
        check_alone(bench.study, bench.store)
        stage = _function(self.stage, "stages.{}:refresh")
        changed = ""
        for _ in range(TRIES):
            named = naming_files(bench.study)
            try:
                with watching(), named, bench.at(self.name, self.reads), bench.modes():
                    update = stage(bench, *([self.argument] if self.argument else []))
                if not bench.plan_only:
                    bench.brought_up_to_date.add(self.name)
                return update
            except SystemExit as error:
                raise ended(error) from error
            except ChangedError as error:
                changed = error.what
                bench.report(f"{self.name}: {error}; begun again")
        raise StudyError(
            f"{bench.study.name}/{self.name}: {changed} changed each of {TRIES} times while it was "
            "used; refresh again when it is written"
        )
