"""Models in the format of transformers: a folder with config.json, weights and a tokenizer; no code in it is run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from configs import UserError
from finetune.data.augment import MASKED
from finetune.data.cleaning import RowReader
from finetune.demo.words import Reading, owner, reading, with_masks
from finetune.encoders.encoder import EncodedExample, padded
from finetune.encoders.published import PublishedEncoder
from finetune.interop.texts import TextPreparation
from finetune.saved_model import Prediction, classified
from mlm.distributed.world import World
from mlm.evaluation.fill_blanks import Guess
from mlm.interop.hub import CONFIG, fetch, read_config, read_tokenizer, read_weights
from tokenizer.sources.readers import TableConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read(encoder: PublishedEncoder, texts: Sequence[str], hidden: Sequence[int]) -> Reading:
    """Return the tokens of a text or pair; each hidden word is one mask token, and all else is plain text."""
    masked, words_of_texts, labels = with_masks(texts, hidden, MASKED)
    encoded: Any = encoder.reader(
        *masked, return_offsets_mapping=True, return_token_type_ids=True, split_special_tokens=True, verbose=False
    )
    mask, firsts = encoder.tokenizer.mask_token_id, (0, len(words_of_texts[0]))
    ids = [mask if token == encoder.placeholder_id else token for token in encoded["input_ids"]]
    owners: list[int | str] = [
        str(encoder.tokenizer.convert_ids_to_tokens(token))
        if text is None or not words_of_texts[text]
        else firsts[text] + owner(words_of_texts[text], start)
        for token, text, (start, _) in zip(ids, encoded.sequence_ids(0), encoded["offset_mapping"], strict=True)
    ]
    return reading(ids, owners, labels, encoded["token_type_ids"])


def written_out(encoder: PublishedEncoder) -> None:
    """Let an encoder compute its attention step by step: the fast ways give no weights."""
    encoder.model.set_attn_implementation("eager")


def output(encoder: PublishedEncoder, read: Reading) -> Tensor:
    """Return the hidden states, or the scores of a model with a head, of a text or pair: one row."""
    tokens = EncodedExample(read.ids, read.types, truncated=False)
    device = next(encoder.parameters()).device
    found: Tensor = encoder(*(part.to(device) for part in padded([tokens], encoder.pad_id)))
    return found


@torch.no_grad()
def weights(encoder: PublishedEncoder, read: Reading) -> list[Tensor]:
    """Return the attention weights of each layer, (H, L, L)."""
    found = list[Tensor]()

    def ask(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given, {**named, "output_attentions": True}

    hooks = (
        encoder.model.register_forward_pre_hook(ask, with_kwargs=True),
        encoder.model.register_forward_hook(lambda _, given, computed: found.extend(computed.attentions)),
    )
    try:
        output(encoder, read)
    finally:
        for hook in hooks:
            hook.remove()
    return [weights_BHLL[0].float().cpu() for weights_BHLL in found]


class _Exported:
    """A model with its tokenizer, on the world's device."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        self._encoder = PublishedEncoder(model, tokenizer).to(world.device)
        written_out(self._encoder)
        self.longest = self._encoder.longest

    def read(self, texts: Sequence[str], hidden: Sequence[int] = ()) -> Reading:
        """Return the tokens."""
        return read(self._encoder, texts, hidden)

    def weights(self, read: Reading) -> Sequence[Tensor]:
        """Return the attention weights of each layer, (H, L, L)."""
        return weights(self._encoder, read)


class ExportedLanguageModel(_Exported):
    """A masked language model."""

    @property
    def mask(self) -> str:
        """The mask token in a text."""
        return str(self._encoder.tokenizer.mask_token)

    @torch.no_grad()
    def guess(self, read: Reading, top: int) -> list[list[Guess]]:
        """Return the most probable tokens for each mask token; no special ones."""
        tokenizer = self._encoder.tokenizer
        logits_MV = output(self._encoder, read)[0, torch.tensor(read.ids) == tokenizer.mask_token_id].float()
        logits_MV[:, tokenizer.all_special_ids] = float("-inf")
        best = logits_MV.softmax(dim=-1).topk(min(top, logits_MV.shape[1]))
        return [
            [Guess(str(tokenizer.decode([token])), share) for token, share in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class ExportedClassifier(_Exported):
    """A classifier of texts or pairs, which are prepared as the configuration tells."""

    most_frequent = None

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        super().__init__(model, tokenizer, world)
        told = _preparation(model.config)
        self.reader = RowReader(told.columns, "label", told.cleaning, TableConfig())
        labels: Any = model.config.id2label
        self.class_names = tuple(str(labels[index]) for index in sorted(labels))

    def classify(self, rows: Sequence[Mapping[str, str]], world: World) -> list[Prediction]:
        """Return the prediction for each row; a text that is too long is truncated."""
        return classified(self._encoder, self._encoder, [self.reader.texts(row) for row in rows], self.longest, world)


def open_exported(path: Path, world: World) -> ExportedLanguageModel | ExportedClassifier:
    """Return the model in a folder; a UserError if it is damaged, or is neither a masked LM nor a classifier."""
    folder = fetch(str(path), None)
    config = read_config(folder)
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kinds: dict[str, tuple[Any, type[ExportedLanguageModel | ExportedClassifier]]] = {
        "ForMaskedLM": (MODEL_FOR_MASKED_LM_MAPPING, ExportedLanguageModel),
        "ForSequenceClassification": (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, ExportedClassifier),
    }
    listed = config.architectures if isinstance(config.architectures, list) else []
    named = " ".join(map(str, listed)) or "no architecture"
    found = [kind for ending, kind in kinds.items() if named.endswith(ending) and type(config) in kind[0]]
    if not found:
        raise UserError(f"{folder / CONFIG}: {named}: the page shows {' and '.join(kinds)}: export one of these")
    ((mapping, kind),) = found
    tokenizer = read_tokenizer(folder, config)
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer tells no places of words: add a tokenizer.json")
    if kind is ExportedLanguageModel and tokenizer.mask_token is None:
        raise UserError(f"{folder}: its tokenizer has no mask token: name it in tokenizer_config.json")
    classes = len(config.id2label or ())
    if kind is ExportedClassifier and (classes < 2 or config.problem_type == "multi_label_classification"):
        raise UserError(
            f"{folder / CONFIG}: the page shows one class of several for a text, and this model gives"
            f" {'one number' if classes < 2 else 'any number of classes'}: take another classifier"
        )
    return kind(read_weights(mapping[type(config)], folder, config), tokenizer, world)


def _preparation(config: "PreTrainedConfig") -> TextPreparation:
    """Return the preparation of a classifier's texts that its configuration tells; none for one of others' making."""
    place, told = Path(str(config.name_or_path)) / CONFIG, getattr(config, "text_preparation_settings", None)
    if told is None and hasattr(config, "text_preparation"):
        raise UserError(
            f"{place} tells the preparation of texts in words alone: export it by python -m finetune.export"
        )
    try:
        return TextPreparation.model_validate(told or {}, strict=False)
    except ValidationError as error:
        raise UserError(f"{place}: text_preparation_settings is damaged: export the model again") from error
