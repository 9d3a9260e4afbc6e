"""Published encoders and masked language models of the transformers library, with their own tokenizers."""

import copy
import inspect
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from configs import UserError
from finetune.data.augment import MASKED
from finetune.data.augment_contextual import is_word
from finetune.encoders.encoder import EncodedExample, TextEncoder, padded
from mlm.distributed.device import autocast
from mlm.distributed.world import World
from mlm.interop.hub import fetch, read_config, read_tokenizer, read_weights, without_pooler
from tokenizer import kinds
from tokenizer.cleaning import as_read_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORD_BEGINS = ("Ġ", "▁")
_CONTINUATION = "##"
LONGEST_WITHOUT_LIMIT = 8192
"""Largest number of tokens of an example for an encoder that declares no limit."""


class PublishedEncoder(TextEncoder):
    """An encoder of the transformers library: a trunk without a head, and its tokenizer."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        config = model.config
        self.width = int(config.hidden_size)
        pads = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id, 0)
        self.pad_id = next(int(pad) for pad in pads if pad is not None)  # RoBERTa counts positions by the model's
        self.has_mask = tokenizer.mask_token is not None
        self._begins = re.compile(kinds.beginnings(tokenizer.all_special_tokens))
        self.reader = _reader_of(tokenizer)
        self.placeholder_id = self.reader.convert_tokens_to_ids(MASKED) if self.has_mask else None
        self.longest = int(min(position_limit(model), tokenizer.model_max_length))
        put = tokenizer("a").input_ids  # a tokenizer may declare a [CLS] that it does not add
        self.cls_id = tokenizer.cls_token_id if tokenizer.cls_token_id in put else None
        knows_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self.takes_types = knows_types and getattr(config, "type_vocab_size", None) not in (0, 1)  # RoBERTa's is 1
        self.train(False)

    def tokenize(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens; in a pair that is too long, the longer text is truncated first."""
        rows = self._encode(texts, None)
        long = [index for index, (ids, _) in enumerate(rows) if len(ids) > longest]
        cut = dict(zip(long, self._encode([texts[index] for index in long], longest), strict=True))
        chosen = [(cut.get(index, row), index in cut) for index, row in enumerate(rows)]
        return [EncodedExample(tuple(ids), tuple(types), truncated) for (ids, types), truncated in chosen]

    def as_read(self, text: str) -> str:
        """Return the normalized text, cut as before any word is looked up: unknown words stay apart."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer in Python shows its tokens alone
            tokens = self.tokenizer.tokenize(text)
            return text if self.tokenizer.unk_token in tokens else " ".join(tokens) or text
        read = as_read_by(backend.normalizer)(text)
        if backend.pre_tokenizer is None:
            return read
        return " ".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(read)) or text

    def _encode(self, texts: Sequence[tuple[str, ...]], longest: int | None) -> list[tuple[list[int], list[int]]]:
        """Return ids and token types of texts or pairs, each truncated to `longest` tokens."""
        if not texts:
            return []
        columns = [list(column) for column in zip(*texts, strict=True)]
        if not self.reader.is_fast:  # a tokenizer in Python always looks for special tokens: it is shown none whole
            columns = [[self._begins.sub(r"\g<0> ", text) for text in column] for column in columns]
        rows = self.reader(
            *columns,
            truncation=longest is not None,
            max_length=longest,
            return_token_type_ids=True,
            return_attention_mask=False,
            split_special_tokens=self.reader.is_fast,
            verbose=False,
        )
        placeholder, mask = self.placeholder_id, self.tokenizer.mask_token_id
        ids = ([mask if token == placeholder else token for token in row] for row in rows["input_ids"])
        return list(zip(ids, rows["token_type_ids"], strict=True))

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states of the last layer, (B, L, D)."""
        types = {"token_type_ids": types_BL} if self.takes_types else {}
        hidden_BLD: Tensor = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), **types)[0]
        return hidden_BLD

    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: embeddings, then each layer; parameters after the layers belong to the last one.

        Layers that share their weights (ALBERT) are one level.
        """
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        # Each architecture names its layers differently: they are the list with most weights, and of equal ones the
        # outermost, which `max` returns because it comes first.
        layers = max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=nn.ModuleList())
        level_of = {id(p): 0 for m in self.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        for number, layer in reversed(list(enumerate(layers, start=1))):
            level_of |= {id(parameter): number for parameter in layer.parameters()}
        levels: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 1)]
        otherwise = 0
        for parameter in self.model.parameters():
            level = level_of.get(id(parameter), otherwise)
            levels[level].append(parameter)
            otherwise = len(layers) if level else otherwise
        return [level for level in levels if level]

    def save(self, folder: Path) -> None:
        """Write the configuration and the files of the tokenizer."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


class PublishedPredictor(PublishedEncoder):
    """A masked language model of the transformers library, in evaluation mode; `forward` scores the vocabulary."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        """Move the model to the world's device; the tokenizer has a mask token."""
        super().__init__(model, tokenizer)
        self.world, self._mask_id = world, int(tokenizer.mask_token_id)
        self.to(world.device)

    @cached_property
    def words(self) -> Sequence[str | None]:
        """The whole word of each vocabulary entry, without white space; None if the entry is no word of letters."""
        size = len(self.tokenizer)
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(size)))
        special = set(self.tokenizer.all_special_ids)
        # Vocabularies mark either beginnings of words (byte-level, SentencePiece) or continuations (WordPiece).
        marked = [token is not None and token.startswith(_WORD_BEGINS) for token in tokens]
        continues = [token is None or token.startswith(_CONTINUATION) for token in tokens]
        begins = marked if sum(marked) > sum(continues) else [not rest for rest in continues]
        texts = [text.strip() for text in self.tokenizer.batch_decode([[index] for index in range(size)])]
        return [
            text if begins[index] and index not in special and is_word(text) else None
            for index, text in enumerate(texts)
        ]

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the vocabulary's scores at the masks of each text, in order, (masks, V); float32 on CPU."""
        rows = padded(self.tokenize([(text,) for text in texts], self.longest), self.pad_id)
        ids_BL, real_BL, types_BL = (part.to(self.world.device) for part in rows)
        masked_BL = ids_BL == self._mask_id

        def masked_only(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (hidden[0][masked_BL],)

        into_vocabulary: nn.Module = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hook = into_vocabulary.register_forward_pre_hook(masked_only)
        try:
            with autocast(self.world.device, self.world.dtype):
                logits_MV = self(ids_BL, real_BL, types_BL)
        finally:
            hook.remove()
        return list(torch.split(logits_MV.float().cpu(), masked_BL.sum(dim=1).tolist()))


def load_published(
    name_or_folder: str, revision: str | None, random: bool, seed: int, *, dropout: float | None = None
) -> PublishedEncoder:
    """Return a published encoder without its head; the arguments are the fields of `EncoderChoice`."""
    folder = fetch(name_or_folder, revision)
    config = read_config(folder, dropout)
    tokenizer = read_tokenizer(folder, config)
    from transformers import MODEL_MAPPING

    model_class = cast("type[PreTrainedModel]", MODEL_MAPPING[type(config)])
    if not random:
        return PublishedEncoder(read_weights(model_class, folder, config), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PublishedEncoder(model_class(config, **without_pooler(model_class)), tokenizer)


def load_published_predictor(name_or_folder: str, revision: str | None, world: World) -> PublishedPredictor:
    """Return a published masked language model with its pretrained head; a UserError if there is none."""
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


def _reader_of(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return a copy that reads MASKED as a token of its own, and can read special tokens in a text as plain text."""
    reader = copy.deepcopy(tokenizer)
    if tokenizer.mask_token is not None:
        mask = tokenizer.added_tokens_decoder[tokenizer.mask_token_id]
        settings = {"lstrip": mask.lstrip, "rstrip": mask.rstrip, "normalized": False}
        reader.add_tokens([AddedToken(MASKED, **settings)])
    if reader.is_fast:
        special = [mark for mark in tokenizer.all_special_tokens if mark != tokenizer.unk_token]
        read = reader(" ".join(special), add_special_tokens=False, split_special_tokens=True).input_ids
        if any(tokenizer.convert_tokens_to_ids(mark) in read for mark in special):
            kinds.cut_names(reader.backend_tokenizer, tokenizer.all_special_tokens)
    return reader


def position_limit(model: nn.Module) -> int:
    """Return the number of positions for tokens; RoBERTa reserves those up to the padding's."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    learned = [m.num_embeddings - (-1 if m.padding_idx is None else m.padding_idx) - 1 for m in tables]
    declared = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [limit for limit in (*learned, declared) if limit > 0]
    return int(min(limits, default=LONGEST_WITHOUT_LIMIT))
