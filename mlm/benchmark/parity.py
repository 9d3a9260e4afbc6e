"""Compare published architectures in our layers with transformers' own, in float32 and bfloat16: a table for the docs.

A model of random weights stands for each architecture; the folders of published ones are compared as well.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import command
from mlm.distributed.process import configure_process

USAGE = """
examples:
  python -m mlm.benchmark.parity                      random models of every architecture
  python -m mlm.benchmark.parity bert-base-uncased    and a published one, by name or folder
"""
SHAPE = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
POSITIONS = {"max_position_embeddings": 130, "vocab_size": 400}
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", SHAPE),
    "RoBERTa": ("RobertaForMaskedLM", {**SHAPE, "type_vocab_size": 1}),
    "XLM-R": ("XLMRobertaForMaskedLM", {**SHAPE, "type_vocab_size": 1}),
    "CamemBERT": ("CamembertForMaskedLM", {**SHAPE, "type_vocab_size": 1}),
    "ELECTRA, generator": ("ElectraForMaskedLM", {**SHAPE, "embedding_size": 64}),
    "ELECTRA, discriminator": ("ElectraForPreTraining", {**SHAPE, "embedding_size": 64}),
    "DistilBERT": ("DistilBertForMaskedLM", {"dim": 128, "n_layers": 6, "n_heads": 4, "hidden_dim": 256}),
    "ModernBERT": ("ModernBertForMaskedLM", {**SHAPE, "local_attention": 16}),
}
"""By architecture: the class in transformers, and its sizes."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str
    sentences: int
    float32: float
    bfloat16: float
    theirs_bfloat16: float


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.benchmark.parity", description=__doc__, epilog=USAGE)
    parser.add_argument("published", nargs="*", metavar="NAME_OR_FOLDER", help="published models")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    command.show(
        "| model | output | sentences | float32 | bfloat16, ours | bfloat16, transformers' |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        made = {name: str(save(Path(folder, name), name)) for name in MODELS}
        for name, path in {**made, **{Path(path).name: path for path in options.published}}.items():
            for row in measure(name, path):
                numbers = f"{row.float32:.1e} | {row.bfloat16:.1e} | {row.theirs_bfloat16:.1e}"
                command.show(f"| {row.name} | {row.kind} | {row.sentences} | {numbers} |")


def measure(name: str, folder: str) -> Iterator[Row]:
    """Yield the largest differences of a model from transformers' in float32, by the kind of output."""
    import torch

    from mlm.interop import comparison, conversion, published

    found = published.read(folder)
    converted = conversion.convert(found, found.row_length)
    exact, rough = (conversion.differences(converted, dtype) for dtype in (torch.float32, torch.bfloat16))
    theirs = comparison.theirs(found, torch.bfloat16)
    their_rough = comparison.differences(found, theirs, found.row_length, pack=False)
    for kind in exact:
        largest = (one[kind].largest for one in (exact, rough, their_rough))
        yield Row(name, kind, len(comparison.SENTENCES), *largest)


def save(folder: Path, name: str) -> Path:
    """Save a random model of an architecture with a tokenizer of the sentences."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from mlm.interop.comparison import SENTENCES

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=marks, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks, strict=True))
    wrap: Any = transformers.PreTrainedTokenizerFast
    words = wrap(tokenizer_object=backend, **roles)
    model_class, sizes = MODELS[name]
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return save_random(folder, model_class, {**POSITIONS, **sizes, **special}, words)


def save_random(folder: Path, name: str, settings: Mapping[str, Any], words: Any, *, shard_size: str = "5GB") -> Path:
    """Save a random model of a class of transformers, by its name, and a tokenizer of transformers; return `folder`."""
    import torch
    import transformers

    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # the usual first values are so small that all words are alike
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 + (parameter.ndim == 1))
    model.tie_weights()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size=shard_size)
    words.save_pretrained(str(folder))
    return folder


if __name__ == "__main__":
    command.run(main)
