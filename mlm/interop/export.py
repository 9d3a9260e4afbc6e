"""Write a model as a folder that plain transformers opens, and compare what transformers reads there with the model.

A run is exported by `mlm.tracking.exported_run`, which calls this.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer
from torch import Tensor, nn

from configs import UserError
from mlm.checkpoint import checkpoint, weights
from mlm.interop import bert, comparison, hub, modernbert
from mlm.interop.architecture import Architecture
from mlm.interop.comparison import Difference, Layout, Outputs
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from tokenizer import vocabulary
from tokenizer.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS, TOKENIZER_CONFIG = "model.safetensors", "tokenizer_config.json"
SENTENCES = 7
"""Number of compared texts that are single sentences; one more is a run of sentences."""
LONGEST_TOKENS = 256
"""Largest number of tokens of a compared text: scores over a large vocabulary take much memory."""
REPORT = "report the model"
"""The advice where no setting is known to help."""
SENTENCES_READ = 1000
"""Largest number of sentences that the compared ones are chosen from."""


class Target(Protocol):
    """A module that gives our models the names of an architecture of transformers."""

    ARCHITECTURE: Architecture

    def refusal(self, config: ModelConfig) -> str | None:
        """Return the settings that the architecture needs and a model lacks; None if it has an exact counterpart."""

    def their_config(
        self, config: ModelConfig, vocabulary_size: int, row_length: int, **special: Any
    ) -> "PreTrainedConfig":
        """Return the configuration of a model of the same shape."""

    def their_tensors(self, ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Return our tensors under the names of the architecture's model for masked language modelling."""


TARGETS: Mapping[str, Target] = {"BERT": bert, "ModernBERT": modernbert}
"""The architectures that a model may leave as; the first that has an exact counterpart is taken."""


@dataclass(frozen=True)
class Compared:
    """The comparison of a model with what transformers reads in its exported folder, in float32."""

    differences: Mapping[str, Difference]
    """Largest differences by the kind of output: `hidden states`, and `scores` where there is a head."""
    texts: int
    """Number of texts that were compared, alone, padded, and packed into a row of ours."""
    heldout: bool
    """True if they are of the run's held-out text; False if they are sentences of this package."""


def architecture_of(config: ModelConfig, remedy: str = "pretrain with these settings, or ") -> str:
    """Return the name of the architecture that a model leaves as.

    Raise a UserError with the settings of the nearest architecture, and the `remedy` before ONNX, if none has an exact
    counterpart.
    """
    needed = {name: module.refusal(config) or "" for name, module in TARGETS.items()}
    nearest = min(needed, key=lambda name: len(needed[name].split()))
    if not needed[nearest]:
        return nearest
    raise UserError(
        f"transformers has no exact counterpart of this model, and none is approximated: {nearest}, the nearest, needs"
        f" {needed[nearest]}: {remedy}export ONNX alone by --format onnx"
    )


def write(
    folder: Path,
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    config: ModelConfig,
    row_length: int,
    *,
    has_head: bool = True,
) -> None:
    """Write configuration, weights and tokenizer into `folder`, as transformers 4.48 and 5 read them.

    A model whose head is at random weights leaves without it. Raise a UserError if it has no exact counterpart.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    target = TARGETS[architecture_of(config)]
    theirs = target.their_config(config, tokenizer.get_vocab_size(), row_length, **special_ids(tokenizer))
    theirs.architectures = [model_class(MODEL_FOR_MASKED_LM_MAPPING if has_head else MODEL_MAPPING, theirs).__name__]
    theirs.save_pretrained(folder)
    tensors = target.their_tensors(model.state_dict(), config)
    weights.write(folder / WEIGHTS, tensors if has_head else trunk(tensors, target))
    shutil.copymode(folder / hub.CONFIG, folder / WEIGHTS)  # safetensors lets the owner alone read it
    write_tokenizer(folder, tokenizer, row_length)


def trunk(tensors: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
    """Return the tensors of the encoder by their names in a model without a head."""
    prefix = target.ARCHITECTURE.trunk
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Return the ids of the special tokens by the names that configurations of transformers have for them."""
    special = SpecialTokens.of(tokenizer)
    ends = {"bos": special.cls, "eos": special.sep, "cls": special.cls, "sep": special.sep}
    return {f"{role}_token_id": number for role, number in {"pad": special.pad, **ends}.items()}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, longest: int) -> None:
    """Write a tokenizer for texts of at most `longest` tokens, as transformers reads it."""
    (folder / checkpoint.TOKENIZER).write_bytes(vocabulary.serialize(tokenizer))
    settings = tokenizer_config(tokenizer, longest)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer, row_length: int) -> dict[str, Any]:
    """Return the content of the tokenizer_config.json that lets transformers read the tokenizer.json as it is."""
    special = SpecialTokens.of(tokenizer)
    roles = {"pad": special.pad, "unk": special.unknown, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # by its name in version 4, which version 5 keeps
        "model_max_length": row_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokenizer.id_to_token(number) for role, number in roles.items() if number is not None},
    }


def compare(
    folder: Path, model: MaskedLanguageModel, tokenizer: Tokenizer, row_length: int, heldout: Iterable[str]
) -> Compared:
    """Compare a model, which is on the CPU, with what plain transformers reads in its exported `folder`.

    `heldout` sentences are compared, or those of this package if there are none, with a token of each masked. Raise a
    UserError if the tokenizers give other ids, or a difference is over `comparison.LARGEST`.
    """
    texts, of_heldout = texts_to_compare(tokenizer, row_length, heldout)
    config = hub.read_config(folder)
    their_tokenizer = hub.read_tokenizer(folder, config)
    for text in texts:
        if their_tokenizer(text)["input_ids"] != tokenizer.encode(text).ids:
            raise UserError(f"transformers gives {text[:60]!r} other tokens than the run's tokenizer")
    # An identity head normalizes twice, which is exact where norm_epsilon is small beside the variance.
    hint = "a run with model.transform=true leaves exactly" if isinstance(model.transform, nn.Identity) else REPORT
    differences = compare_with("transformers", _exported(folder, config), model, tokenizer, texts, hint)
    return Compared(differences, len(texts), of_heldout)


def texts_to_compare(tokenizer: Tokenizer, row_length: int, heldout: Iterable[str]) -> tuple[Sequence[str], bool]:
    """Return texts of the `heldout` sentences and True, or those of this package and False if none fits a row."""
    chosen = choose_texts(heldout, tokenizer, row_length)
    return chosen or choose_texts(comparison.SENTENCES, tokenizer, row_length), bool(chosen)


def compare_with(
    name: str,
    theirs: comparison.Compute,
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    hint: str = REPORT,
) -> dict[str, Difference]:
    """Return the largest differences between `theirs`, by its `name`, and a model on the CPU, a token of each masked.

    Raise a UserError with the `hint` if one is over `comparison.LARGEST`.
    """
    rows, special = [tokenizer.encode(text).ids for text in texts], SpecialTokens.of(tokenizer)
    for ids in rows:
        ids[len(ids) // 2] = special.mask
    differences = comparison.compare(comparison.ours(model, scores=True), theirs, rows, special.pad)
    comparison.check(differences, f"the run and of {name}", hint)
    return differences


def choose_texts(sentences: Iterable[str], tokenizer: Tokenizer, row_length: int) -> Sequence[str]:
    """Return a run of the first sentences, as long as fits, then some of them by length; none if none fits a row.

    Those with the text of a special token, which transformers takes for the token and we for text, are passed over.
    """
    most = min(row_length, LONGEST_TOKENS)
    special = [tokenizer.id_to_token(number) or "" for number in SpecialTokens.of(tokenizer).ids]
    plain = (text for text in islice(sentences, SENTENCES_READ) if text and not any(map(text.count, special)))
    fitting = [text for text in plain if len(tokenizer.encode(text).ids) <= most]
    run = ""
    for text in fitting:
        longer = f"{run} {text}".strip()
        if len(tokenizer.encode(longer).ids) > most:
            break
        run = longer
    ordered = sorted(set(fitting), key=lambda text: (len(text), text))
    return [run, *ordered[:: -(-len(ordered) // SENTENCES)]] if run else []


def _exported(folder: Path, config: "PreTrainedConfig") -> comparison.Compute:
    """Return the function that computes a batch by the models that plain transformers reads in `folder`.

    There are scores if the configuration names the model with a head.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    with_head = model_class(MODEL_FOR_MASKED_LM_MAPPING, config)
    scorer = hub.read_weights(with_head, folder, config) if config.architectures == [with_head.__name__] else None
    encoder = hub.read_weights(model_class(MODEL_MAPPING, config), folder, config)

    def compute(batch: Layout) -> Outputs:
        given = {"input_ids": batch.ids_BL, "attention_mask": (batch.segments_BL > 0).long()}
        found = {"hidden states": encoder(**given).last_hidden_state}
        return found if scorer is None else found | {"scores": scorer(**given).logits}

    return compute


def model_class(mapping: Any, config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    """Return the class of models that one of transformers' mappings has for a configuration."""
    found: type[PreTrainedModel] = mapping[type(config)]
    return found
