"""Settings that nobody can mean."""

from bad_input.kinds import Kind, Section, file, load, materialize, refresh, settings
from bad_input.of_defs import attribute

DIRECT = {"methods": {"cg": None}}
PERTURBED = {"methods": {"direct": None, "cg": None, "identity": {}}}

VALUES = [
    Kind("an unknown group", settings(damping_factor=1)),
    Kind("an unknown method", settings(methods={"drect": {}})),
    Kind("a misspelt option", settings(methods={"cg": {"rtoll": 1e-3}})),
    Kind("no method", settings(methods={"direct": None, "cg": None}, perturbation=None)),
    Kind("a method with a number for its options", settings(methods={"direct": 3})),
    Kind("`methods` as a list", settings(methods=["direct"], perturbation=None)),
    Kind("no data", settings(data=None)),
    Kind("no training file", settings(data={"train": None})),
    Kind("an empty list of files", settings(data={"train": []})),
    Kind("a number for a file", settings(data={"train": 3})),
    Kind("an empty name of a file", settings(data={"train": ""}), refresh),
    Kind("a name of a file with a byte of 0", settings(data={"train": "a\0.csv"}), refresh),
    Kind(
        "a name of a file of 300 characters", settings(data={"train": "a" * 300 + ".csv"}), refresh
    ),
    Kind("a callable in a list of files", settings(data={"train": ["tiny_model:rows"]})),
    Kind("one column in two roles", settings(data={"id": "label"})),
    Kind("λ = NaN", settings(damping=float("nan"))),
    Kind("λ = ∞", settings(damping=float("inf"))),
    Kind("λ < 0", settings(damping=-1.0)),
    Kind("λ = yes", attribute("damping: yes")),
    Kind("λ in words", settings(damping="small")),
    Kind("no λ in a list", settings(damping=[])),
    Kind("a λ of NaN in a list", settings(damping=[0.1, float("nan")])),
    Kind("a λ twice in a list", settings(damping=[0.1, 1, 0.1])),
    Kind(
        "a λ that float32 cannot hold",
        settings(damping=1e300, compute={"dtype": "float32"}, **DIRECT),
        refresh,
    ),
    Kind("a whole number of 65 bits", settings(methods={"cg": {"rank": 2**64}})),
    Kind("more steps than can be counted", settings(model={"fit": {"max_steps": 10**30}})),
    Kind("a seed below 0", settings(model={"fit": {"seed": -1}})),
    Kind("a seed of 400 digits", settings(model={"fit": {"seed": 10**400}})),
    Kind("half a step", settings(model={"fit": {"max_steps": 1.5}})),
    Kind("a rank of 0", settings(methods={"cg": {"rank": 0}})),
    Kind("`scale: 0`", settings(data={"features": {"scale": 0}})),
    Kind("`scale: yes`", settings(data={"features": {"scale": True}})),
    Kind("a scale of NaN", settings(data={"features": {"scale": float("nan")}})),
    Kind(
        "a scale that overflows the features",
        settings(data={"features": {"scale": 1e308}}),
        refresh,
    ),
    Kind("a shape with a 0", settings(data={"features": {"shape": [3, 0]}})),
    Kind("a shape of 40 dimensions", settings(data={"features": {"shape": [3] + [1] * 39}})),
    Kind(
        "a feature that is named twice",
        settings(data={"features": {"columns": ["height", "width", "height"]}}),
    ),
    Kind(
        "the target as a feature",
        settings(data={"features": {"columns": ["height", "width", "label"]}}),
    ),
    Kind(
        "names of two axes for a shape of one",
        settings(data={"features": {"shape": [3], "dims": ["a", "b"]}}),
    ),
    Kind(
        "a feature axis called `train`", settings(data={"features": {"dims": ["train"]}}), refresh
    ),
    Kind("a separator of two characters", settings(data={"csv": {"separator": ";;"}})),
    Kind("an encoding that nobody knows", settings(data={"csv": {"encoding": "utf-99"}})),
    Kind("an encoding that is no text", settings(data={"csv": {"encoding": "base64"}}), refresh),
    Kind("separator and decimal the same", settings(data={"csv": {"decimal": ","}})),
    Kind("two classes of one name", settings(data={"classes": ["a", "a"]})),
    Kind("a precision that there is not", settings(compute={"dtype": "float16"})),
    Kind("a device that there is not", settings(compute={"device": "cuda:99"}, **DIRECT), refresh),
    Kind("a device in other words", settings(compute={"device": "gpu"})),
    Kind("a block of no bytes", settings(compute={"block_bytes": 0})),
    Kind("a size in a unit that there is not", settings(compute={"block_bytes": "64 mb"})),
    Kind("a size of more digits than a number has", settings(compute={"block_bytes": "9" * 400})),
    Kind(
        "a size in decimals of more digits than a number has",
        settings(compute={"block_bytes": f"{'9' * 400}.5 GB"}),
    ),
    Kind("a cron string that is none", settings(refresh={"schedule": "a b c d e"})),
    Kind("hour 25", settings(refresh={"schedule": "0 25 * * *"})),
    Kind("an empty store path", settings(store={"path": " "})),
    Kind("a store path of 300 characters", settings(store={"path": "s" * 300})),
    Kind("a file where the store would be", file("store", "x"), refresh),
    Kind(
        "a link to nothing where the store would be",
        lambda p: (p.root / "store").symlink_to("/not/mounted"),
        refresh,
    ),
    Kind("versions kept: 0", settings(store={"keep_versions": 0})),
    Kind("chunks of no rows", settings(store={"chunks": {"train": 0}})),
    Kind("chunks along an axis that there is not", settings(store={"chunks": {"rows": 3}})),
    Kind("a relative error of 1", settings(store={"max_relative_error": 1})),
    Kind("waiting for less than nothing", settings(store={"lock_timeout": -1})),
    Kind("waiting for ever", settings(store={"lock_timeout": float("inf")})),
    Kind("fit and checkpoint", settings(model={"checkpoint": "theta.safetensors"})),
    Kind("neither fit nor checkpoint", settings(model={"fit": None})),
    Kind("an optimizer that there is not", settings(model={"fit": {"optimizer": "adamw"}})),
    Kind("a step size for lbfgs", settings(model={"fit": {"learning_rate": 0.1}})),
    Kind("a loss that there is not", settings(model={"loss": "hinge"})),
    Kind("`build` without a colon", settings(model={"build": "tiny_model.build"})),
    Kind("`build` as a path", settings(model={"build": "./tiny_model.py:build"})),
    Kind(
        "perturbations of a method that is not asked for",
        settings(perturbation={"methods": ["lissa"]}),
    ),
    Kind(
        "perturbations above the size that is allowed",
        settings(perturbation={"methods": ["identity"], "max_bytes": 100}, **PERTURBED),
        refresh,
    ),
    Kind(
        "perturbations reduced in a way that there is not",
        settings(perturbation={"reduce": {"over": "train", "by": "median"}}),
    ),
    Kind("pairs without their number", settings(perturbation={"pairs": "top-k"})),
    Kind(
        "perturbations reduced, and pairs of them",
        settings(perturbation={"pairs": "top-3", "reduce": {"over": "test", "by": "l2"}}),
    ),
    Kind(
        "perturbations in a module that there is not",
        settings(perturbation={"methods": ["identity"], "wrt": "embedding"}, **PERTURBED),
        refresh,
    ),
    Kind(
        "leave-one-out of a method that is not asked for",
        settings(validation={"leave_one_out": {"method": "ekfac"}}),
    ),
    Kind("a share of 1 of the labels", settings(validation={"label_errors": {"share": 1}})),
    Kind(
        "a λ for blocks that there are not",
        settings(methods={"direct": {"block_damping": {"0": 1.0}}}),
    ),
    Kind(
        "blocks of parameters that there are not",
        settings(methods={"direct": {"blocks": [["0.wieght"]]}, "cg": None}),
        refresh,
    ),
    Kind(
        "a parameter in two blocks",
        settings(methods={"direct": {"blocks": [["0.weight"], ["0.weight"]]}, "cg": None}),
        refresh,
    ),
    Kind("a text of 10,000 characters", settings(model={"fit": {"optimizer": "x" * 10_000}})),
    Kind("λ = 0 for an indefinite matrix", settings(damping=0.0, **DIRECT), refresh),
    Kind("λ = 0, the whole job", settings(damping=0.0, **DIRECT), materialize),
    Kind(
        "a fit that stops before the minimum",
        settings(damping=1.0, model={"fit": {"max_steps": 1}}, **DIRECT),
        materialize,
    ),
    Kind(
        "a learning rate that diverges",
        settings(model={"fit": {"optimizer": "sgd", "learning_rate": 1e300}}, **DIRECT),
        refresh,
    ),
    Kind(
        "a solve that does not converge",
        settings(
            methods={"cg": {"rtol": 1e-14, "maxiter": 1, "rank": None, "preconditioner": "none"}}
        ),
        refresh,
    ),
    Kind("a λ so small that nothing can be inverted", settings(damping=1e-320, **DIRECT), refresh),
]

SECTIONS = [
    Section(
        "Settings",
        "`defs.yaml`; what needs the rows or the model is told by a refresh",
        load,
        VALUES,
    ),
]
