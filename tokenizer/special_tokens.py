"""The special tokens of a tokenizer, told from its tokenizer.json alone: their roles, and whether it puts them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from configs import UserError

_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "unknown": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<s>", "<bos>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<eos>", "<sep>"),
}
"""The names that published tokenizers use for each role, those that a tokenizer declares special before others."""


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a tokenizer's special tokens."""

    pad: int
    mask: int
    unknown: int | None
    cls: int | None
    sep: int | None
    adds_cls_sep: bool
    """True if every text stands between `cls` and `sep`."""
    between: tuple[int, ...]
    """The tokens between the two texts of a pair."""
    ids: tuple[int, ...]
    """The ids of all special tokens, in order: those of the roles, and any others that the tokenizer declares."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialTokens":
        """Return the special tokens of `tokenizer`; `cls` and `sep` are those that it puts around a text, if any.

        Raise a UserError if it has no token for padding or masks, or puts special tokens elsewhere.
        """
        declared = {token.content: number for number, token in _added(tokenizer).items() if token.special}
        roles = {role: _first(names, declared, tokenizer) for role, names in _NAMES.items()}
        plain, framed = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        between = [roles["sep"]] if roles["sep"] is not None else []
        if framed != plain:
            if framed[1:-1] != plain:
                raise UserError("it puts other special tokens than one before and one behind a text")
            roles |= {"cls": framed[0], "sep": framed[-1]}
            between = tokenizer.encode("a", "a").ids[1 + len(plain) : -1 - len(plain)]
        for role in ("pad", "mask"):
            if roles[role] is None:
                raise UserError(
                    f"it has no {role} token, such as {_NAMES[role][0]} or {_NAMES[role][1]}: add one by"
                    " add_special_tokens of the tokenizers library, and a row of the model's embedding for it"
                )
        ids = {*declared.values(), *(number for number in roles.values() if number is not None)}
        numbers: dict[str, Any] = roles | {"between": tuple(between), "ids": tuple(sorted(ids))}
        return cls(**numbers, adds_cls_sep=framed != plain)

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Return a text's tokens with those that the tokenizer puts around them."""
        if self.cls is None or self.sep is None or not self.adds_cls_sep:
            return [*ids]
        return [self.cls, *ids, self.sep]

    def found_in(self, ids: Iterable[int]) -> bool:
        """Return whether `ids` hold a special token other than the unknown one, which stands for plain text."""
        return not (set(self.ids) - {self.unknown}).isdisjoint(ids)


@lru_cache(maxsize=8)
def ordinary_ids(special: SpecialTokens, size: int) -> NDArray[np.int64]:
    """Return the ids of a vocabulary of `size` tokens that are not special, in order."""
    return np.setdiff1d(np.arange(size), special.ids)


def padded_to(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """Return a copy of `size` tokens, as an embedding of so many rows has; the new ones are special and never occur.

    Raise a UserError if the tokenizer has more tokens.
    """
    missing = size - tokenizer.get_vocab_size()
    if missing < 0:
        raise UserError(
            f"the tokenizer has {tokenizer.get_vocab_size():,} tokens, and the embedding {size:,} rows: take the"
            " tokenizer that the weights were trained with"
        )
    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.encode_special_tokens = tokenizer.encode_special_tokens
    padded.add_special_tokens([f"[ROW_WITHOUT_TOKEN_{number}]" for number in range(size - missing, size)])
    return padded


def _added(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    return added


def _first(names: tuple[str, ...], declared: dict[str, int], tokenizer: Tokenizer) -> int | None:
    ids = [*map(declared.get, names), *map(tokenizer.token_to_id, names)]
    return next((number for number in ids if number is not None), None)
