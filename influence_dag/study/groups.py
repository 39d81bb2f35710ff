"""Settings beside data, model and methods: what is kept, computed and stored, where and when."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from influence_dag.addresses import scheme_of
from influence_dag.errors import StoreError
from influence_dag.study.base import Bytes, Settings, Split, Unit, is_cron, path_name, setting

By = Literal["mean", "absmax", "l2"]


class ReduceSettings(Settings):
    """What is kept of perturbation influences along one axis; the whole tensor is never held."""

    over: Literal["feature", "test"] = Field(
        description="feature: a number a pair, test × train | test: one map a row, train × features"
    )
    by: By = Field(
        description="absmax: the largest absolute value | l2: the root of the sum of squares"
    )


def _top(value: str) -> str:
    if not re.fullmatch(r"top-[1-9]\d*", value):
        raise ValueError(f"{value[:40]!r} is not top-k with a number of training rows: top-10")
    return value


class PerturbationSettings(Settings):
    """Which methods also get perturbation influences (`test × train × features`)."""

    methods: tuple[str, ...] = Field(description="names of methods, of those that the study has")
    wrt: str | None = setting(
        None,
        "a module of the model, such as an embedding: the derivative is in what it puts out; "
        "default: in the model's inputs",
    )
    reduce: ReduceSettings | None = None
    pairs: Annotated[str, AfterValidator(_top)] | None = setting(
        None,
        "top-10: of each test row the ten training rows with the longest derivative (l2 over "
        "all features), test × rank × features; default: all pairs",
    )
    max_bytes: Bytes = setting(64 * 2**30, "refuse to store an array above this size")

    @model_validator(mode="after")
    def _one_form(self) -> "PerturbationSettings":
        if self.reduce and self.pairs:
            raise ValueError(
                f"reduce and pairs ({self.pairs}) are two ways to keep less; leave one out"
            )
        return self

    @property
    def top(self) -> int | None:
        """Pairs kept of each test row; None for all."""
        return int(self.pairs.partition("-")[2]) if self.pairs else None


class SummarySettings(Settings):
    """What `<method>/summary` keeps."""

    top: Annotated[PositiveInt, Unit("rows")] = setting(
        10, "helpers and harmers kept for each test row"
    )
    self_influence: Literal["auto"] | bool = setting(
        "auto", "auto: all methods but the iterative ones, which need one solve a training row"
    )


class CurvatureSettings(Settings):
    """Whether the curvature follows the rows."""

    refresh: Literal["on_change", "pinned"] = setting(
        "on_change", "on_change: with the rows and θ | pinned: new rows meet the stored curvature"
    )


class RefreshSettings(Settings):
    """When Dagster refreshes the study by itself; off by default."""

    schedule: str | None = setting(
        None, "a cron string such as '0 3 * * *': everything is brought up to date then"
    )
    automation: bool = setting(
        False, "look at the files every minute and refresh what depends on a change"
    )

    @field_validator("schedule")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is not None and not is_cron(value):
            raise ValueError(
                f"{value[:80]!r} is not a cron string; write minute, hour, day, month and weekday, "
                "for example '0 3 * * *'"
            )
        return value


def _scheduler(value: str) -> str:
    if value != "local" and not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", value):
        raise ValueError(f"{value!r} is not local, tcp://host:port or tls://host:port")
    return value


class ComputeSettings(Settings):
    """Where, by whom and in what precision; none of it but `dtype` changes a number."""

    device: str = setting(
        "auto",
        "auto: a GPU where torch sees one | cpu | cuda | cuda:1",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    dtype: Literal["float32", "float64"] = setting(
        "float32", "of gradients, factors and influences; fits are in float64"
    )
    block_bytes: Bytes = setting(64 * 2**20, "what is computed at once on its way to the store")
    batch_size: Annotated[PositiveInt, Unit("rows")] = setting(
        512, "training rows differentiated at once"
    )
    executor: Literal["local", "dask"] = setting(
        "local", "local: blocks are computed in the process that stores | dask: by Dask workers"
    )
    address: Annotated[str, AfterValidator(_scheduler)] | None = setting(
        None,
        "of the Dask scheduler, tcp://host:port or tls://host:port; default: local, workers on "
        "this machine that end with the run",
    )
    workers: Annotated[PositiveInt, Unit("processes")] | None = setting(
        None, "of local Dask workers, with a thread each; default: one a core"
    )

    @model_validator(mode="after")
    def _of_one_executor(self) -> "ComputeSettings":
        given = {"address": self.address, "workers": self.workers}
        if self.executor == "local" and (named := [name for name in given if given[name]]):
            raise ValueError(
                f"{' and '.join(named)} say where Dask computes, and executor is local; write "
                "executor: dask, or leave them out"
            )
        if self.workers and self.address not in (None, "local"):
            raise ValueError(
                f"workers is {self.workers}, and the cluster at {self.address} has workers of its "
                "own, however many; leave out workers or address"
            )
        return self


def _known_store(value: str) -> str:
    if scheme_of(value):
        from influence_dag.store.opening import check_address

        try:
            check_address(value)
        except StoreError as error:
            raise ValueError(str(error)) from error
    return value


class StoreSettings(Settings):
    """Where the arrays go, how they are cut and how long old versions are kept."""

    path: Annotated[str, AfterValidator(path_name), AfterValidator(_known_store)] = setting(
        "data/store",
        "the folder with a folder for each study, from the project's; or store: path. "
        "memory://name: in the memory of the process, gone when it ends. s3://bucket/prefix: "
        "in Icechunk repositories, credentials from the environment; icechunk+file:///folder: "
        "in such repositories in a folder",
    )
    chunks: Annotated[Mapping[Split, PositiveInt] | None, Unit("rows")] = setting(
        None, "rows a chunk along test and train; an edit costs the chunks that it touches"
    )
    keep_versions: Annotated[PositiveInt, Unit("versions")] = setting(
        5, "kept of each artifact; older ones are removed"
    )
    lock_timeout: Annotated[PositiveFloat, Unit("seconds")] = setting(
        3600.0, "seconds to wait for another process at the same artifact"
    )
    locks: Literal["flock", "files"] = setting(
        "flock",
        "files: lock files, for a file system without locks of the system; alike for all who "
        "write there",
    )
    max_relative_error: Annotated[float, Field(ge=0, lt=0.5)] = setting(
        0.0, "influences are rounded by at most this before compression; 0: not at all"
    )


def store_settings(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value
