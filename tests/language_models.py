"""Tiny models of `transformers`, built from their configs, with rows for them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

VOCABULARY, LENGTH, CLASSES, IGNORED = 7, 5, 3, -100
NAMES = ("classifier", "tagger", "language model")


def build(name, *, tie=True):
    """The model, untrained but seeded; its weights are larger than at an ordinary start."""
    torch.manual_seed(0)
    model = _made(name, tie)
    for embedding in (each for each in model.modules() if isinstance(each, nn.Embedding)):
        embedding.weight.data *= 1.5  # norms of small vectors have large derivatives
    return model.eval()


def _made(name, tie):
    import transformers as T  # a second, for the tests that have one

    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "use_cache": True}
    if name == "language model":
        config = T.GPT2Config(
            n_positions=LENGTH + 2, n_embd=4, n_layer=1, n_head=2, tie_word_embeddings=tie,
            bos_token_id=0, eos_token_id=0, **common,
        )  # fmt: skip
        return T.GPT2LMHeadModel(config)
    config = T.BertConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        max_position_embeddings=LENGTH + 2, num_labels=CLASSES, **common,
    )  # fmt: skip
    kinds = {"classifier": T.BertForSequenceClassification, "tagger": T.BertForTokenClassification}
    return kinds[name](config)


def loss_name(name):
    return "next_token" if name == "language model" else "cross_entropy"


def loss(name):
    """The mean of the rows' losses, from all that the model returns."""

    def mean(output, labels):
        logits = output["logits"]
        if name == "classifier":
            return F.cross_entropy(logits, labels)
        if name == "language model":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return torch.stack([F.cross_entropy(*pair) for pair in zip(logits, labels)]).mean()  # noqa: B905

    return mean


class Sentences(Dataset):
    """Tokens of several lengths, padded, with labels of the kind that the model is trained on."""

    def __init__(self, name, rows, first=0):
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(1, VOCABULARY, (first + rows, LENGTH), generator=generator)[first:]
        lengths = 3 + torch.arange(first, first + rows) % (LENGTH - 2)
        self.mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        self.tokens = tokens * self.mask
        classes = torch.where(self.mask.bool(), self.tokens % CLASSES, IGNORED)
        tokens = torch.where(self.mask.bool(), self.tokens, IGNORED)
        first_token = self.tokens[:, 0] % CLASSES
        self.labels = {"classifier": first_token, "tagger": classes, "language model": tokens}[name]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        inputs = {"input_ids": self.tokens[row], "attention_mask": self.mask[row]}
        return {**inputs, "labels": self.labels[row]}
