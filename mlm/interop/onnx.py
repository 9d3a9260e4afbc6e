"""Write networks as ONNX for any number and length of rows, and run them in onnxruntime (https://onnx.ai)."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from configs.extras import require
from mlm.interop.comparison import Layout, Outputs
from mlm.interop.export import Compared, compare_with, texts_to_compare, write_tokenizer
from mlm.model.attention import SegmentMask
from mlm.model.heads import MaskedLanguageModel

FILE = Path("onnx") / "model.onnx"
"""The place that optimum and transformers.js expect, in a folder with the tokenizer."""
OPSET = 18
"""Version of ONNX's operators: the oldest that torch's exporter writes as it is, so that older runtimes read it too."""
OUTPUTS = (("scores", "logits"), ("hidden states", "last_hidden_state"))
"""The kinds of output in order, and their names in transformers."""

Runner = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""A function from inputs by name, each (B, L), to the outputs in order."""


def check_installed() -> None:
    """Raise a UserError if a package of the extra `onnx` is not installed."""
    require("onnx", "onnxscript", "onnxruntime", extra="onnx", purpose="ONNX")


def export(
    folder: Path,
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    row_length: int,
    heldout: Iterable[str],
    *,
    has_head: bool = True,
) -> Compared:
    """Write a model in evaluation mode on the CPU and its tokenizer into `folder`, and compare onnxruntime with it.

    A model whose head is at random weights leaves without scores. The texts are those of
    `mlm.interop.export.compare`. Raise a UserError if a difference is over `comparison.LARGEST`.
    """
    names = OUTPUTS if has_head else OUTPUTS[-1:]
    network = MaskedLMScores(model, has_head=has_head).eval()
    example = {name: torch.ones(2, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    write(network, example, [name for _, name in names], folder / FILE)
    write_tokenizer(folder, tokenizer, row_length)
    run = load(folder / FILE)

    def compute(batch: Layout) -> Outputs:
        real_BL = (batch.segments_BL > 0).long()
        found = run({"input_ids": batch.ids_BL, "attention_mask": real_BL})
        return {kind: part for (kind, _), part in zip(names, found, strict=True)}

    texts, of_heldout = texts_to_compare(tokenizer, row_length, heldout)
    return Compared(compare_with("onnxruntime", compute, model, tokenizer, texts), len(texts), of_heldout)


def write(
    network: nn.Module,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    longest: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network in evaluation mode as ONNX into `path`, whose folder is made.

    `example` holds its arguments by name, each (B, L) with at least two rows and positions; the file takes any B,
    and any L up to `longest`, which a network that refuses longer rows must name. `metadata` are
    properties of the file. Weights of over 2 GB become a file beside it.
    """
    # A length of 1 or equal dimensions of unlike axes would be taken for constants.
    assert all(part.shape[0] > 1 and part.shape[1] > 1 and part.shape[0] != part.shape[1] for part in example.values())
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            network,
            kwargs=dict(example),
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes=dict.fromkeys(example, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    path.parent.mkdir(exist_ok=True)
    program.save(path)


def load(path: Path) -> Runner:
    """Return a function that runs an ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: part.numpy() for name, part in inputs.items()})
        return [torch.from_numpy(part) for part in found]

    return run


class MaskedLMScores(nn.Module):
    """A masked language model as a function of padded rows: scores of the vocabulary everywhere, and hidden states."""

    def __init__(self, model: MaskedLanguageModel, *, has_head: bool) -> None:
        super().__init__()
        self.model, self.has_head = model, has_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the scores, (B, L, V), if there is a head, and the last hidden states, (B, L, D)."""
        positions_BL = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden_BLD = self.model.encoder(input_ids, SegmentMask.of(attention_mask.int(), positions_BL, torch.float32))
        if not self.has_head:
            return (hidden_BLD,)
        embedding_VD = self.model.encoder.embeddings.tokens.weight
        return F.linear(self.model.transform(hidden_BLD), embedding_VD, self.model.output_bias), hidden_BLD


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what torch's exporter says of itself; the comparison in onnxruntime finds what it does wrong."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
