"""Whether a study's influences mean what they say: refits against predictions, as artifacts."""

from dataclasses import replace

from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import model_key
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench

FORMULA = FORMULAS["validation"]


def refresh(bench: Workbench, kind: str) -> Update:
    """Refit as the study asks and keep predictions, outcomes and their agreement."""
    settings = getattr(bench.settings.validation, kind)
    methods = bench.settings.methods.names
    stored = {m: bench.require(naming.influences(m)).data_version for m in methods}
    rows = [bench.axis("dataset", split).fingerprint for split in ("train", "test")]
    asked = settings.model_dump(), bench.settings.model.trains_on
    key = fingerprint(kind, FORMULA, *asked, model_key(bench), stored, rows)

    def produce() -> Whole:
        from influence_dag.stages.refits import produced  # here: it imports torch, a plan does not

        return replace(produced(bench, kind), notes={naming.OF_INFLUENCES: stored})

    return refresh_whole(bench, naming.validation(kind), key, produce)
