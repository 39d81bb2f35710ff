"""A study's graph: which artifact is made from which, as assets with checks and a job."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from influence_dag import __version__
from influence_dag.components.checks import check_definitions
from influence_dag.store.fingerprints import fingerprint
from influence_dag.study import Study


@dataclass(frozen=True)
class Artifact:
    """One node of the graph: an artifact, what it reads, and the stage that makes it.

    `stage` is a module of `influence_dag.stages`, imported when the asset runs and not before:
    loading the definitions stays free of torch.
    """

    name: str
    reads: tuple[str, ...]
    stage: str
    kinds: frozenset[str]
    description: str
    method: str | None = None
    function: str = "refresh"
    gpu: bool = False

    def refresh(self, bench: Any) -> Any:
        module = importlib.import_module(f"influence_dag.stages.{self.stage}")
        return getattr(module, self.function)(bench, *([self.method] if self.method else []))


def artifacts(study: Study) -> Iterator[Artifact]:
    """The nodes of a study's graph, in the order in which they can be computed."""
    methods = study.settings.methods.names
    perturbed = study.settings.perturbation.methods if study.settings.perturbation else ()
    yield Artifact(
        "dataset",
        ("source",),
        "dataset",
        frozenset({"zarr"}),
        "The rows of both files: checked, labelled, each with a slot and a content hash.",
    )
    yield Artifact(
        "model",
        ("dataset",),
        "model",
        frozenset({"torch"}),
        "The fitted module: its state as safetensors and its trainable parameters θ as one vector.",
        gpu=True,
    )
    yield Artifact(
        "gradients",
        ("dataset", "model"),
        "gradients",
        frozenset({"torch", "zarr"}),
        "∇θ L(z_i, θ) of every training row, factored per layer.",
        gpu=True,
    )
    if "direct" in methods:
        yield Artifact(
            "hessian",
            ("dataset", "model"),
            "curvature",
            frozenset({"torch", "zarr"}),
            "H = (1/n) Σ ∇²L(z_i, θ), exact, with its eigenvalues.",
            function="refresh_hessian",
            gpu=True,
        )
    for method in methods:
        yield from _method_artifacts(method, perturbed)
    yield Artifact(
        "report",
        tuple(f"{m}/influences" for m in methods),
        "report",
        frozenset({"zarr"}),
        "How the methods agree: relative error, Pearson, Spearman per test row.",
    )


def _method_artifacts(method: str, perturbed: tuple[str, ...]) -> Iterator[Artifact]:
    both = frozenset({"torch", "zarr"})
    source = ("hessian",) if method == "direct" else ("dataset", "model")
    yield Artifact(
        f"{method}/curvature",
        source,
        "curvature",
        both,
        f"What `{method}` makes of the curvature once, for every solve: plain arrays.",
        method,
        gpu=True,
    )
    operator = (
        "dataset",
        "model",
        f"{method}/curvature",
        *(("hessian",) if method == "direct" else ()),
    )
    yield Artifact(
        f"{method}/influence_factors",
        operator,
        "factors",
        both,
        "(H + λI)⁻¹ ∇θ L(z_test), one row a test row.",
        method,
        gpu=True,
    )
    factors = f"{method}/influence_factors"
    yield Artifact(
        f"{method}/influences",
        (factors, "gradients"),
        "influences",
        both,
        "I[test, train] = ∇L(z_test)ᵀ (H + λI)⁻¹ ∇L(z_train). Positive: the training row helps "
        "the test row.",
        method,
        gpu=True,
    )
    if method in perturbed:
        yield Artifact(
            f"{method}/perturbation_influences",
            (factors, "dataset", "model"),
            "perturbation",
            both,
            "P[test, train, feature] = ∂/∂x_train of the influence. Positive: more of the "
            "feature lowers the test loss.",
            method,
            gpu=True,
        )
    yield Artifact(
        f"{method}/summary",
        (f"{method}/influences", "gradients", f"{method}/curvature"),
        "summary",
        frozenset({"zarr"}),
        "Sums over rows and columns, strongest pairs of each test row, self-influence.",
        method,
    )


def study_definitions(study: Study) -> dg.Definitions:
    """Assets, blocking checks and a refresh job of one study."""
    nodes = list(artifacts(study))
    job = dg.define_asset_job(
        f"{study.name}_refresh",
        selection=dg.AssetSelection.groups(study.name),
        description=f"Bring every artifact of {study.name} up to date; what is current is skipped.",
        executor_def=dg.in_process_executor,
    )
    return dg.Definitions(
        assets=[_source(study), *(_asset(study, node) for node in nodes)],
        asset_checks=check_definitions(study, [node.name for node in nodes]),
        jobs=[job],
    )


def asset_key(study: Study, name: str) -> dg.AssetKey:
    return dg.AssetKey([study.name, *name.split("/")])


def _source(study: Study):
    data = study.settings.data

    @dg.observable_source_asset(
        key=asset_key(study, "source"),
        group_name=study.name,
        description=(
            f"The input files: {data.train} and {data.test}. Observing compares their content."
        ),
    )
    def source() -> dg.DataVersion:
        from influence_dag.datasets import source_fingerprint

        return dg.DataVersion(source_fingerprint(data, study.root))

    return source


def _asset(study: Study, node: Artifact) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, node.name),
        deps=[asset_key(study, name) for name in node.reads],
        description=node.description,
        group_name=study.name,
        kinds=set(node.kinds),
        pool="gpu" if node.gpu else None,
        code_version=code_version(study, node),
        metadata={"store": dg.MetadataValue.path(str(study.store_path / node.name))},
        retry_policy=dg.RetryPolicy(max_retries=0),
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from influence_dag.components.metadata import materialize_result
        from influence_dag.stages.base import Workbench

        bench = Workbench(study, context.log.info)
        return materialize_result(bench, node.refresh(bench), node.method)

    return asset


def code_version(study: Study, node: Artifact) -> str:
    """Hash of the settings that the artifact's numbers depend on.

    Settings of later stages are left out, so that changing them marks only what they change.
    """
    settings = study.settings.model_dump(mode="json", exclude={"store", "perturbation", "summary"})
    compute = settings.pop("compute")
    own = {"data": settings["data"], "dtype": compute["dtype"]}
    if node.name != "dataset":
        own["model"] = settings["model"]
    if node.method:
        own |= {"damping": settings["damping"], "method": settings["methods"][node.method]}
    if node.name == "report":
        own |= {"damping": settings["damping"], "methods": settings["methods"]}
    return f"{__version__}-{fingerprint(node.name, own)[:12]}"
