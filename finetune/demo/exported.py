"""Models in the format of transformers: a folder with config.json, weights and a tokenizer; no code in it is run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from configs import UserError
from finetune.data.cleaning import Cleaning, RowReader
from finetune.demo.words import TYPED_MASK, Reading, Word, owner, reading, split
from finetune.encoders.published import position_limit
from finetune.saved_model import Prediction
from mlm.distributed.world import World
from mlm.evaluation.fill_blanks import Guess
from mlm.interop.hub import CONFIG, fetch, read_config, read_tokenizer, read_weights
from tokenizer.sources.readers import TableConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 32
"""Texts that are classified together."""


def read(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], hidden: Sequence[int]) -> Reading:
    """Return the tokens of a text or pair; each hidden word is one mask token."""
    masked, words, names = list[str](), list[list[Word]](), list[str]()
    for text in texts:
        found, first, written = split(text), len(names), ""
        moved = list[Word]()
        for index, word in enumerate(found):
            written += text[found[index - 1].end if index else 0 : word.start]
            shown = str(tokenizer.mask_token) if first + index in hidden else word.text
            moved.append(Word(shown, len(written), len(written) + len(shown)))
            written += shown
        masked.append(written)
        words.append(moved)
        names += [TYPED_MASK if first + index in hidden else word.text for index, word in enumerate(found)]
    encoded: Any = tokenizer(*masked, return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
    ids, firsts = encoded["input_ids"], [0, len(words[0])]
    owners: list[int | str] = [
        str(tokenizer.convert_ids_to_tokens(token))
        if text is None or not words[text]
        else firsts[text] + owner(words[text], start)
        for token, text, (start, _) in zip(ids, encoded.sequence_ids(0), encoded["offset_mapping"], strict=True)
    ]
    return reading(ids, owners, names, encoded["token_type_ids"])


def written_out(model: "PreTrainedModel") -> None:
    """Let a model compute its attention step by step: the fast ways give no weights."""
    model.set_attn_implementation("eager")


@torch.no_grad()
def weights(model: "PreTrainedModel", compute: Callable[[], object]) -> list[Tensor]:
    """Return the attention weights of each layer, (H, L, L), while `compute` calls the model with one row."""
    found = list[Tensor]()

    def ask(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given, {**named, "output_attentions": True}

    hooks = (
        model.register_forward_pre_hook(ask, with_kwargs=True),
        model.register_forward_hook(lambda _, given, output: found.extend(output.attentions)),
    )
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    return [weights_BHLL[0].float().cpu() for weights_BHLL in found]


class _Exported:
    """A model with its tokenizer, on the world's device."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, world.device
        model.to(world.device)  # type: ignore[arg-type]
        written_out(model)
        self.longest = int(min(position_limit(model), tokenizer.model_max_length))

    def read(self, texts: Sequence[str], hidden: Sequence[int] = ()) -> Reading:
        """Return the tokens."""
        return read(self._tokenizer, texts, hidden)

    def weights(self, read: Reading) -> Sequence[Tensor]:
        """Return the attention weights of each layer, (H, L, L)."""
        return weights(self._model, lambda: self._model(input_ids=torch.tensor([read.ids], device=self._device)))


class ExportedLanguageModel(_Exported):
    """A masked language model."""

    @property
    def mask(self) -> str:
        """The mask token in a text."""
        return str(self._tokenizer.mask_token)

    @torch.no_grad()
    def guess(self, read: Reading, top: int) -> list[list[Guess]]:
        """Return the most probable tokens for each mask token; no special ones."""
        ids_L = torch.tensor(read.ids, device=self._device)
        scores_MV = self._model(input_ids=ids_L[None]).logits[0, ids_L == self._tokenizer.mask_token_id].float()
        scores_MV[:, self._tokenizer.all_special_ids] = float("-inf")
        best = scores_MV.softmax(dim=-1).topk(min(top, scores_MV.shape[1]))
        return [
            [Guess(str(self._tokenizer.decode([token])), share) for token, share in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class ExportedClassifier(_Exported):
    """A classifier of single texts, which it reads as they are."""

    most_frequent = None
    reader = RowReader(("text",), "label", Cleaning(), TableConfig())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        labels: Any = self._model.config.id2label or {}
        return tuple(str(labels[index]) for index in sorted(labels))

    @torch.no_grad()
    def classify(self, rows: Sequence[Mapping[str, str]], world: World) -> list[Prediction]:
        """Return the prediction for each row; a text that is too long is truncated."""
        texts = [self.reader.texts(row)[0] for row in rows]
        lengths = {index: len(text) for index, text in enumerate(texts) if text}
        order = sorted(lengths, key=lengths.__getitem__)
        found = {index: Prediction((), truncated=False) for index in range(len(texts))}
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            given = [texts[index] for index in chosen]
            whole = [len(ids) > self.longest for ids in cast(Any, self._tokenizer)(given, verbose=False)["input_ids"]]
            batch: Any = self._tokenizer(
                given,
                truncation=True,
                max_length=self.longest,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            shares = self._model(**batch.to(self._device)).logits.double().softmax(dim=-1).tolist()
            found |= {i: Prediction(row, cut) for i, row, cut in zip(chosen, shares, whole, strict=True)}
        return [found[index] for index in range(len(texts))]


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
    return kind(read_weights(mapping[type(config)], folder, config), tokenizer, world)
