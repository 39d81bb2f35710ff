"""What `dg scaffold defs influence_dag.components.InfluenceStudy <name>` writes."""

from dagster.components import Scaffolder, ScaffoldRequest
from dagster.components.component_scaffolding import scaffold_component

_MODEL = '''"""The model of this study."""

from torch import nn


def build() -> nn.Module:
    """The untrained module; the pipeline fits it."""
    return nn.Sequential(nn.Flatten(), nn.Linear({features}, {outputs}))
'''


class InfluenceStudyScaffolder(Scaffolder):
    """A `defs.yaml` with every choice that has no default, and a `model.py` beside it."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        name = request.target_path.name
        module = ".".join((*request.target_path.parts[-2:-1], name, "model"))
        (request.target_path / "model.py").write_text(_MODEL.format(features=64, outputs=10))
        scaffold_component(
            request,
            {
                "data": {
                    "train": f"data/{name}/train.csv",
                    "test": f"data/{name}/test.csv",
                    "id": "id",
                    "target": "label",
                },
                "model": {
                    "build": f"{module}:build",
                    "loss": "cross_entropy",
                    "fit": {"optimizer": "lbfgs", "weight_decay": 0.01},
                },
                "damping": 0.01,
                "methods": {"direct": {}},
            },
        )
