"""Which of a module's outputs is the prediction."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import influence_dag as idag
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows


class ModelOutput(OrderedDict):
    """As transformers has it: a mapping whose entries are attributes as well."""

    def __getattr__(self, name):
        return self[name] if name in self else super().__getattribute__(name)


class SequenceClassifierOutput(ModelOutput):
    pass


class Classifier(nn.Module):
    """A small text classifier in the form of frameworks: named inputs, a mask, wrapped logits."""

    def __init__(self, wrap):
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, input_ids, attention_mask):
        hidden = self.norm(self.embed(input_ids))
        mask = attention_mask.unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return self.wrap(self.out(pooled), hidden)


WRAPS = {
    "the tensor": lambda logits, hidden: logits,
    "a dict": lambda logits, hidden: {"hidden": hidden, "logits": logits},
    "an output class": lambda logits, hidden: SequenceClassifierOutput(
        loss=None, logits=logits, hidden_states=(hidden,)
    ),
    "a namespace": lambda logits, hidden: SimpleNamespace(logits=logits, cache=None),
    "a tuple of one": lambda logits, hidden: (logits, None),
}


def rows(n=6):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(9, (n, 5), generator=generator)
    mask = (torch.arange(5) < 1 + torch.arange(n)[:, None] % 5).long()
    return Rows({"input_ids": ids, "attention_mask": mask}, torch.arange(n) % 3)


def classifier(wrap):
    torch.manual_seed(0)
    return Classifier(wrap).double().eval()


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()], ids=["named", "torch's"])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_logits_are_found(wrap, loss):
    plain, wrapped = classifier(WRAPS["the tensor"]), classifier(wrap)
    expected = Objective(plain, "cross_entropy")
    objective = idag.TorchTwiceDifferentiable(wrapped, loss).objective
    objective.check(rows())
    torch.testing.assert_close(
        objective.losses(objective.params, rows()), expected.losses(expected.params, rows())
    )
    torch.testing.assert_close(
        per_sample_gradients(objective, rows()).dense(),
        per_sample_gradients(expected, rows()).dense(),
    )


@pytest.mark.parametrize("name", ["head", "1"])
def test_an_output_can_be_named(name):
    ways = {
        "head": lambda out, hidden: {"hidden": hidden, "head": out},
        "1": lambda out, hidden: (hidden, out),
    }
    objective = Objective(classifier(ways[name]), "cross_entropy", output=name)
    expected = Objective(classifier(WRAPS["the tensor"]), "cross_entropy")
    torch.testing.assert_close(
        objective.losses(objective.params, rows()), expected.losses(expected.params, rows())
    )


def test_a_loss_of_ones_own_gets_all_that_the_module_returns():
    seen = []

    def loss(outputs, target):
        seen.append(sorted(outputs))
        return F.cross_entropy(outputs["logits"], target, reduction="none")

    objective = Objective(classifier(WRAPS["a dict"]), loss)
    objective.losses(objective.params, rows())
    assert seen == [["hidden", "logits"]]


def test_the_logits_of_tokens_have_their_classes_second():
    class Tagger(Classifier):
        def forward(self, input_ids, attention_mask):
            return SequenceClassifierOutput(logits=self.out(self.embed(input_ids)))

    class Plain(Tagger):
        """In no framework's class they are as the module's own loss wants them."""

        def forward(self, *ids):
            return {"logits": super().forward(*ids)["logits"].mT}

    module = Tagger(None).double().eval()
    batch = rows()
    labels = torch.randint(3, (6, 5))
    labels[:, 3:] = -100
    objective = Objective(module, "cross_entropy")
    found = objective.losses(objective.params, Rows(batch.x, labels))
    logits = module(**batch.x).logits
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")[:, :3].mean(1)
    torch.testing.assert_close(found, each)
    plain = Plain(None).double().eval()
    plain.load_state_dict(module.state_dict())
    objective = Objective(plain, "cross_entropy")
    inputs = tuple(batch.x.values())
    torch.testing.assert_close(objective.losses(objective.params, Rows(inputs, labels)), each)


def test_outputs_that_are_ambiguous_or_unknown_are_told():
    two = classifier(lambda out, hidden: (out, hidden))
    with pytest.raises(ModelError, match=r"tuple of .*say which with model\.output"):
        Objective(two, "cross_entropy").check(rows())
    named = Objective(classifier(WRAPS["a dict"]), "cross_entropy", output="scores")
    with pytest.raises(ModelError, match=r"'scores' is no tensor among .*known are hidden, logits"):
        named.losses(named.params, rows())


def test_adapters_on_a_frozen_base_are_captured():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(6, 5)
            self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

        def forward(self, x):
            return self.base(x) + 0.5 * self.lora_B(self.lora_A(x))

    module = nn.Sequential(Adapted(), nn.Tanh(), nn.Linear(5, 3)).double()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora" in name)
    objective = Objective(module, "cross_entropy")
    assert objective.size == 22
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3
    factorization = idag.solvers.EKFAC().factorize(
        idag.curvature.GaussNewton(objective, Rows(x, y))
    )
    assert factorization.info["captured_layers"] == "0.lora_A, 0.lora_B"
    assert factorization.info["dense_blocks"] == ""


def test_caches_and_fused_attention_of_frameworks_are_off_while_the_module_runs():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(use_cache=True, _attn_implementation="flash_attention_2")
            self.seen, self.out = [], nn.Linear(2, 2)

        def forward(self, x):
            self.seen.append((self.config.use_cache, self.config._attn_implementation))
            return self.out(x)

    module = Configured()
    objective = Objective(module, "mse")
    objective.outputs(objective.params, torch.zeros(1, 2))
    assert module.seen == [(False, "eager")]
    assert module.config.use_cache
    assert module.config._attn_implementation == "flash_attention_2"
