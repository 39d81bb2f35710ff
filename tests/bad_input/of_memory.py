"""The façade in memory, given what cannot work."""

import torch
from bad_input.kinds import Kind, Section, nothing
from tiny_project import Project

import influence_dag as idag

X = torch.linspace(-1, 1, 24).reshape(8, 3)
Y = torch.arange(8) % 3


def loader(x=X, y=Y, **options):
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=4, **options
    )


def influences(module=None, loss="cross_entropy", data=None, measurement=None, **settings):
    """Influences in memory, of a small module, with something wrong."""

    def run(project: Project) -> None:
        of = torch.nn.Linear(3, 3) if module is None else module()
        given = loader() if data is None else data()
        wrapped = idag.TorchTwiceDifferentiable(of, loss, measurement=measurement)
        idag.compute_influences(wrapped, given, **{"hessian_regularization": 0.5, **settings})

    return run


class Own(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        raise ValueError("no such table")


class Keeping(torch.nn.Linear):
    """Centred by the mean of the batch that it saw first."""

    def __init__(self):
        super().__init__(3, 3)
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return super().forward(x - self.mean)


class Holding(torch.nn.Linear):
    """A weight that its `forward` has from elsewhere than the module's attribute."""

    def __init__(self):
        super().__init__(3, 3)
        weight = self.weight
        self.product = lambda x: x @ weight

    def forward(self, x):
        return self.product(x) + self.bias


def solve(b, **settings):
    return lambda project: idag.solve_hvp(
        "direct",
        idag.TorchTwiceDifferentiable(torch.nn.Linear(3, 3), "cross_entropy"),
        loader(),
        b,
        hessian_perturbation=0.5,
        **settings,
    )


MEMORY = [
    Kind("a method that there is not", nothing, influences(inversion_method="drect")),
    Kind(
        "a setting that the method does not have",
        nothing,
        influences(inversion_method="cg", rtoll=1e-3),
    ),
    Kind(
        "a word that a setting does not know",
        nothing,
        influences(inversion_method="arnoldi", complement="Damping"),
    ),
    Kind(
        "mini-batches of fewer rows than one",
        nothing,
        influences(inversion_method="lissa", batch_size=-2),
    ),
    Kind("λ under both of its names", nothing, influences(hessian_perturbation=5.0)),
    Kind("λ under the name of studies", nothing, influences(damping=5.0)),
    Kind(
        "a setting under both of its names",
        nothing,
        influences(inversion_method="arnoldi", rank=3, rank_estimate=5),
    ),
    Kind(
        "a first guess of NaN",
        nothing,
        influences(inversion_method="cg", x0=torch.full((12,), float("nan"))),
    ),
    Kind("a first guess in a list", nothing, influences(inversion_method="cg", x0=[0.0] * 12)),
    Kind("the dampings of blocks below 0", nothing, influences(block_damping={"full": -1.0})),
    Kind("a kind of influence that there is not", nothing, influences(influence_type="down")),
    Kind("λ < 0", nothing, influences(hessian_regularization=-1.0)),
    Kind("λ = NaN", nothing, influences(hessian_regularization=float("nan"))),
    Kind("λ in words", nothing, influences(hessian_regularization="small")),
    Kind("a loss that there is not", nothing, influences(loss="hinge")),
    Kind("a loss that is a number", nothing, influences(loss=3)),
    Kind(
        "a loss that averages what it cannot take apart",
        nothing,
        influences(loss=lambda output, target: output.mean() ** 2),
    ),
    Kind(
        "a loss without a gradient",
        nothing,
        influences(loss=lambda output, target: output.sum(1).detach()),
    ),
    Kind("a module in half precision", nothing, influences(lambda: torch.nn.Linear(3, 3).half())),
    Kind("labels of complex numbers", nothing, influences(data=lambda: loader(y=Y + 1j))),
    Kind(
        "numbers to fit that are complex",
        nothing,
        influences(loss="mse", data=lambda: loader(y=X * 1j)),
    ),
    Kind("a module that raises", nothing, influences(Own)),
    Kind("a module that holds a weight in a closure", nothing, influences(Holding)),
    Kind("a module that keeps the mean of its first batch", nothing, influences(Keeping)),
    Kind(
        "a measurement that does not see the parameters",
        nothing,
        influences(measurement=lambda output, target: output.detach().sum(1)),
    ),
    Kind(
        "products of gradients beyond the precision",
        nothing,
        influences(
            loss=lambda output, target: 1e20 * output.square().mean(1),
            inversion_method="identity",
        ),
    ),
    Kind("a module without parameters", nothing, influences(torch.nn.Flatten)),
    Kind("something that is no module", nothing, influences(lambda: 3)),
    Kind("a loader without rows", nothing, influences(data=list)),
    Kind("rows that are no pairs", nothing, influences(data=lambda: [torch.zeros(3, 3)])),
    Kind("something that is no loader", nothing, influences(data=lambda: 3)),
    Kind("rows in a sparse tensor", nothing, influences(data=lambda: [(X.to_sparse(), Y)])),
    Kind(
        "quantised rows",
        nothing,
        influences(data=lambda: [(torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), Y)]),
    ),
    Kind(
        "rows in another precision from one batch on",
        nothing,
        influences(data=lambda: [(X, Y), (X.double(), Y)]),
    ),
    Kind(
        "rows in numpy's longdouble",
        nothing,
        influences(data=lambda: [(X.numpy().astype("longdouble"), Y)]),
    ),
    Kind(
        "a device that there is not",
        nothing,
        lambda project: idag.TorchTwiceDifferentiable(torch.nn.Linear(3, 3), "mse", "warp:7"),
    ),
    Kind(
        "a device without numbers",
        nothing,
        lambda project: idag.TorchTwiceDifferentiable(torch.nn.Linear(3, 3), "mse", "meta"),
    ),
    Kind("rows of another width", nothing, influences(data=lambda: loader(torch.zeros(8, 5)))),
    Kind("labels above the model's outputs", nothing, influences(data=lambda: loader(y=Y + 1))),
    Kind("rows of NaN", nothing, influences(data=lambda: loader(X * float("nan")))),
    Kind("a loader that shuffles", nothing, influences(data=lambda: loader(shuffle=True))),
    Kind(
        "a module to derive in that there is not",
        nothing,
        influences(influence_type="perturbation", wrt="embedding"),
    ),
    Kind("blocks of parameters that there are not", nothing, influences(blocks=[["wieght"]])),
    Kind("a right-hand side of another length", nothing, solve(torch.zeros(2, 5))),
    Kind("a right-hand side of NaN", nothing, solve(torch.full((2, 12), float("nan")))),
]

SECTIONS = [
    Section(
        "In memory",
        "`idag.compute_influences`, `idag.solve_hvp`",
        nothing,
        MEMORY,
        told_as=(idag.errors.InfluenceDagError, ValueError, TypeError),
    ),
]
