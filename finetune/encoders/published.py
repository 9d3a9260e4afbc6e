"""Published encoders, through the transformers library and with their own tokenizers."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from configs import UserError
from finetune.encoders.encoder import EncodedExample, TextEncoder
from finetune.encoders.hub import fetch, read_config, read_tokenizer, read_weights, without_pooler
from mlm.distributed.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WORD_BEGINS = ("Ġ", "▁")
_WORD_GOES_ON = "##"
LONGEST_WITHOUT_LIMIT = 8192
"""Most tokens of an example for an encoder that declares no limit."""


class PublishedEncoder(TextEncoder):
    """An encoder of the transformers library."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Wrap a trunk without a head, and its tokenizer."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        config = model.config
        self.width = int(config.hidden_size)
        self.pad_id = pad_id(model, tokenizer)
        self.mask_text = tokenizer.mask_token
        self.longest = min(position_limit(model), tokenizer.model_max_length)
        put = tokenizer("a").input_ids  # a tokenizer may declare a [CLS] that it does not put
        self.cls_id = tokenizer.cls_token_id if tokenizer.cls_token_id in put else None
        self._takes_types = takes_types(model)
        self.train(False)

    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens; of a pair that is too long, the longer text is cut first."""
        return tokenise(self.tokenizer, texts, longest)

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states of the last layer, (B, L, D)."""
        types = {"token_type_ids": types_BL} if self._takes_types else {}
        hidden_BLD: Tensor = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), **types)[0]
        return hidden_BLD

    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: what stands before the layers, then each layer; what follows goes with the last.

        Layers that share their weights (ALBERT) are one level.
        """
        inside: dict[int, int] = {}
        layers = _layers(self.model)
        for number, layer in enumerate(layers, start=1):
            for parameter in layer.parameters():
                inside.setdefault(id(parameter), number)
        embeddings = {id(p) for m in self.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        levels: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 1)]
        current = 0
        for parameter in self.model.parameters():
            if id(parameter) in inside:
                levels[inside[id(parameter)]].append(parameter)
                current = len(layers)
            else:
                levels[0 if id(parameter) in embeddings else current].append(parameter)
        return [level for level in levels if level]

    def save(self, folder: Path) -> None:
        """Write the configuration and the files of the tokenizer."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


class PublishedPredictor(nn.Module):
    """The masked language model of the transformers library that a checkpoint holds, in evaluation mode."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        """Predict on the world's device and in its precision; the tokenizer has a mask token."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.mask_text, self._mask_id = str(tokenizer.mask_token), int(tokenizer.mask_token_id)
        self.longest = int(min(position_limit(model), tokenizer.model_max_length))
        self._takes_types, self._pad_id = takes_types(model), pad_id(model, tokenizer)
        self.world = world
        self.train(False)
        self.to(world.device)

    @cached_property
    def words(self) -> Sequence[str | None]:
        """What each vocabulary entry is as a whole word, without white space; None if it is no word of letters."""
        size = len(self.tokenizer)
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(size)))
        special = set(self.tokenizer.all_special_ids)
        # Vocabularies mark either how words begin (byte-level, SentencePiece) or how they go on (WordPiece).
        marked = [token is not None and token.startswith(_WORD_BEGINS) for token in tokens]
        going_on = [token is None or token.startswith(_WORD_GOES_ON) for token in tokens]
        begins = marked if sum(marked) > sum(going_on) else [not rest for rest in going_on]
        texts = [text.strip() for text in self.tokenizer.batch_decode([[index] for index in range(size)])]
        return [
            text if begins[index] and index not in special and text.isalpha() else None
            for index, text in enumerate(texts)
        ]

    def encoder_tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens as `PublishedEncoder.tokenise` does."""
        return tokenise(self.tokenizer, texts, longest)

    @torch.no_grad()
    def masked_scores(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the scores of the vocabulary at the masks, row by row, (M, V); no others are computed."""
        masked_BL = ids_BL == self._mask_id
        types = {"token_type_ids": types_BL} if self._takes_types else {}

        def masked_only(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (hidden[0][masked_BL],)

        into_vocabulary: nn.Module = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hook = into_vocabulary.register_forward_pre_hook(masked_only)
        try:
            with self.world.autocast():
                scores_MV: Tensor = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), **types).logits
        finally:
            hook.remove()
        return scores_MV

    def predict(self, texts: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Return for each example the scores of the vocabulary at its masks, in order, (masks, V). float32, on CPU."""
        if not texts:
            return []
        rows = self.encoder_tokenise(texts, self.longest)
        ids_BL = _padded([row.ids for row in rows], self._pad_id)
        real_BL = _padded([(1,) * len(row.ids) for row in rows], 0).bool()
        types_BL = _padded([row.types for row in rows], 0)
        scores_MV = self.masked_scores(*(part.to(self.world.device) for part in (ids_BL, real_BL, types_BL)))
        masks = (ids_BL == self._mask_id).sum(dim=1).tolist()
        return list(torch.split(scores_MV.float().cpu(), masks))


def load_published(
    name_or_folder: str, revision: str | None, random: bool, seed: int, *, dropout: float | None = None
) -> PublishedEncoder:
    """Return a published encoder, without the head that it was published with.

    Args:
        name_or_folder: a folder in transformers' format, or a name of the hub.
        revision: a commit, branch or tag of the hub's; None: the newest.
        random: whether to draw the weights anew, in the same shape and as the architecture wants them.
        seed: what they are drawn by.
        dropout: every dropout inside the encoder; None: as it was published.

    Raises:
        UserError: it is not there, is damaged or lacks weights, or would have code of its own run.

    """
    folder = fetch(name_or_folder, revision)
    config = read_config(folder, dropout)
    tokenizer = read_tokenizer(folder, config)
    if random:
        return PublishedEncoder(_drawn(config, seed), tokenizer)
    model_class = _trunk(config)
    return PublishedEncoder(read_weights(model_class, folder, config, **without_pooler(model_class)), tokenizer)


def load_published_predictor(name_or_folder: str, revision: str | None, world: World) -> PublishedPredictor:
    """Return a published masked language model, with the head that it was pretrained with.

    Raises:
        UserError: as `load_published`; also where the checkpoint has no such head, or its tokenizer no mask.

    """
    folder = fetch(name_or_folder, revision)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or tokenizer.mask_token is None:
        raise UserError(
            f"{name_or_folder} predicts no hidden words ({config.model_type}): take a masked language model such as "
            "BERT, or do without contextual replacement"
        )
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_MASKED_LM_MAPPING[type(config)])
    return PublishedPredictor(read_weights(model_class, folder, config), tokenizer, world)


def restore_published(folder: Path) -> PublishedEncoder:
    """Return the encoder that `PublishedEncoder.save` described, its weights still to be filled in.

    Raises:
        UserError: a file is missing or damaged.

    """
    folder = fetch(str(folder.absolute()), None)
    config = read_config(folder)
    return PublishedEncoder(_drawn(config, seed=0), read_tokenizer(folder, config))


def tokenise(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], longest: int
) -> list[EncodedExample]:
    """Return the tokens of texts or of pairs, each cut to `longest` with special tokens counted."""
    if not texts:
        return []
    rows = _encode(tokenizer, texts, None)
    long = [index for index, (ids, _) in enumerate(rows) if len(ids) > longest]
    cut = dict(zip(long, _encode(tokenizer, [texts[index] for index in long], longest), strict=True))
    chosen = [(cut.get(index, row), index in cut) for index, row in enumerate(rows)]
    return [EncodedExample(tuple(ids), tuple(types), truncated) for (ids, types), truncated in chosen]


def takes_types(model: nn.Module) -> bool:
    """Return whether a model tells a pair's texts apart by token types (RoBERTa's has one type only)."""
    types = getattr(model.config, "type_vocab_size", None)
    return "token_type_ids" in inspect.signature(model.forward).parameters and types not in (0, 1)


def pad_id(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills up rows: the model's, by which RoBERTa counts its positions, or the tokenizer's."""
    configured = getattr(model.config, "pad_token_id", None)
    pad = configured if configured is not None else tokenizer.pad_token_id
    return int(pad) if pad is not None else 0


def position_limit(model: nn.Module) -> int:
    """Return how many positions a model knows; where one is padding's, those up to it are not for tokens (RoBERTa)."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    learned = [m.num_embeddings - (-1 if m.padding_idx is None else m.padding_idx) - 1 for m in tables]
    declared = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [limit for limit in (*learned, declared) if limit > 0]
    return int(min(limits, default=LONGEST_WITHOUT_LIMIT))


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], longest: int | None
) -> list[tuple[list[int], list[int]]]:
    if not texts:
        return []
    firsts_and_seconds = [list(column) for column in zip(*texts, strict=True)]
    rows = tokenizer(
        *firsts_and_seconds,
        truncation=longest is not None,
        max_length=longest,
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
    )
    return list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))


def _trunk(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    from transformers import MODEL_MAPPING

    return cast("type[PreTrainedModel]", MODEL_MAPPING[type(config)])


def _drawn(config: "PreTrainedConfig", seed: int) -> "PreTrainedModel":
    model_class = _trunk(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config, **without_pooler(model_class))
    model.train(False)
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers: the list of modules that holds most of the weights, and of equals the outermost."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    weights = [sum(parameter.numel() for parameter in found.parameters()) for found in lists]
    return list(lists[weights.index(max(weights))]) if lists else []


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
