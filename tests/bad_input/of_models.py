"""Models, losses and fits of people's own that cannot work."""

from bad_input.kinds import Kind, Section, all_of, model, refresh, settings
from bad_input.of_code import build
from tiny_project import MODEL

LOSS = "\n\ndef loss(output, target):\n    {body}\n"
ENTROPY = "nn.functional.cross_entropy(output, target, reduction='none')"
NOISE = """\
class Noise(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        return nn.functional.dropout(super().forward(x))
"""
CUBE = """\
class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


"""


def loss(body: str):
    """A loss with this body."""
    return model(MODEL + LOSS.format(body=body), loss="tiny_model:loss")


def forward(*lines: str, top: str = ""):
    """A layer with a `forward` of these lines; `out` is what it ought to return."""
    body = "\n        ".join(("out = super().forward(x)", *lines))
    own = f"class Own(nn.Linear):\n    calls = 0\n\n    def forward(self, x):\n        {body}\n"
    return model(build("return Own(3, 3)", f"{top}{own}"))


def fit(body: str, arguments: str = "module, rows"):
    """A fit with this body."""
    source = f"{MODEL}\n\ndef fit({arguments}):\n    {body}\n"
    return all_of(settings(damping=0.5), model(source, fit="tiny_model:fit"))


def measurement(body: str):
    source = f"{MODEL}\n\ndef measured(output, target):\n    {body}\n"
    return model(source, measurement="tiny_model:measured")


BUILDS = [
    Kind("`build` that raises", model(build("raise RuntimeError('no weights')"))),
    Kind("`build` that wants an argument", model(MODEL.replace("build()", "build(size)"))),
    Kind("`build` that returns nothing", model(build("pass"))),
    Kind("`build` that returns a class", model(build("return nn.Linear"))),
    Kind("`build` that returns a tuple", model(build("return nn.Linear(3, 3), 1"))),
    Kind("a module without parameters", model(build("return nn.Flatten()"))),
    Kind(
        "a module whose parameters are all frozen",
        model(build("return nn.Linear(3, 3).requires_grad_(False)")),
    ),
    Kind("a module with sizes not known yet", model(build("return nn.LazyLinear(3)"))),
    Kind(
        "weights of NaN",
        model(build("return nn.Linear(3, 3).apply(lambda m: m.weight.data.fill_(torch.nan))")),
    ),
    Kind("a module on the meta device", model(build("return nn.Linear(3, 3, device='meta')"))),
    Kind(
        "a module of complex numbers", model(build("return nn.Linear(3, 3, dtype=torch.complex64)"))
    ),
    Kind(
        "a module of another input size", model(MODEL.replace("nn.Linear(3, 4)", "nn.Linear(5, 4)"))
    ),
    Kind("a module of fewer classes", model(MODEL.replace("nn.Linear(4, 3)", "nn.Linear(4, 2)"))),
    Kind("a module of no outputs", model(MODEL.replace("nn.Linear(4, 3)", "nn.Linear(4, 0)"))),
    Kind("active dropout", model(build("return Noise()", NOISE))),
    Kind(
        "batch normalisation of the batch",
        model(build("return nn.BatchNorm1d(3, track_running_stats=False)")),
    ),
    Kind("a `forward` that raises", forward("raise ValueError('no such table')")),
    Kind("a `forward` that leaves the program", forward("raise SystemExit(0)")),
    Kind("a `forward` that returns numpy", forward("return out.detach().numpy()")),
    Kind("a `forward` that cuts the graph", forward("return out.detach()")),
    Kind("a `forward` that returns NaN", forward("return out * float('nan')")),
    Kind("a `forward` that counts its calls", forward("Own.calls += 1", "return out * Own.calls")),
    Kind(
        "a `forward` in float32, whatever it is given", forward("return super().forward(x.float())")
    ),
    Kind("a second derivative that there is not", forward("return Cube.apply(out)", top=CUBE)),
]

LOSSES = [
    Kind("no such loss", settings(model={"loss": "tiny_model:los"})),
    Kind("a loss that averages", loss("return nn.functional.cross_entropy(output, target)")),
    Kind("a loss that raises", loss("raise KeyError('weights')")),
    Kind("a loss that returns nothing", loss("pass")),
    Kind("a loss that returns a number", loss("return 1.0")),
    Kind("a loss that returns numpy", loss("return output.sum(1).detach().numpy()")),
    Kind("a loss of another shape", loss(f"return {ENTROPY}[:, None]")),
    Kind("a loss without a gradient", loss(f"return {ENTROPY}.detach()")),
    Kind("a loss of integers", loss("return output.argmax(1)")),
    Kind("a loss of NaN", loss("return output.sum(1) * float('nan')")),
    Kind("a loss of infinity", loss("return output.sum(1) / 0")),
    Kind("a loss in float32 for a model in float64", loss(f"return {ENTROPY}.float()")),
    Kind("a loss that draws", loss(f"return {ENTROPY} * torch.rand(())")),
    Kind(
        "a loss that wants three arguments",
        model(MODEL + LOSS.replace("target", "target, more"), loss="tiny_model:loss"),
    ),
    Kind("a loss that leaves the program", loss("raise SystemExit(3)")),
    Kind("`mse` for labels of another shape", settings(model={"loss": "mse"})),
    Kind("`bce_with_logits` for labels above 1", settings(model={"loss": "bce_with_logits"})),
    Kind("a measurement that averages", measurement("return output.mean()")),
    Kind("a measurement that returns nothing", measurement("pass")),
    Kind("an output that the model does not have", settings(model={"output": "logits"})),
]

FITS = [
    Kind("a fit that adds a layer", fit("module.append(nn.Linear(3, 3).double())")),
    Kind("a fit that raises", fit("raise RuntimeError('no convergence')")),
    Kind("a fit that leaves the program", fit("raise SystemExit(0)")),
    Kind("a fit that wants three arguments", fit("pass", "module, rows, more")),
    Kind("a fit that makes NaN of θ", fit("module[0].weight.data.fill_(float('nan'))")),
    Kind("a fit that makes other tensors of θ", fit("module[0] = torch.nn.Linear(7, 4)")),
    Kind("a fit that scales its rows in place", fit("rows.x.mul_(0.5)")),
    Kind("a fit that numbers the labels anew", fit("rows.y.numpy()[:] = (rows.y + 1) % 3")),
    Kind("a fit that freezes all", fit("module.requires_grad_(False)")),
    Kind(
        "a fit that leaves hooks behind",
        fit("module.register_forward_hook(lambda *each: each[2] * 2)"),
    ),
]

SECTIONS = [
    Section("Models", "what `model.build` returns", refresh, BUILDS),
    Section(
        "Losses and measurements",
        "`model.loss`, `model.measurement`, `model.output`",
        refresh,
        LOSSES,
    ),
    Section("Fits of one's own", "`model.fit: module:callable`", refresh, FITS),
]
