"""The corpus of a model, or a mixture of several: shards of token ids, packed into rows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from configs import UserError
from mlm.data.batches import PackedRows
from mlm.data.order import RowOrder
from tokenizer.mixture import ShardsConfig, shares_of
from tokenizer.shards.format import SIDES, TOKENIZER, ShardManifest, Shards, open_shards, parts_of
from tokenizer.shards.joined import check_fit, joined
from tokenizer.shards.rows import find_or_pack
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import load


@dataclass(frozen=True)
class Corpus:
    """A tokenizer, and the training and held-out side of shards in rows."""

    config: tuple[ShardsConfig, ...]
    """The corpora of the mixture, by their folders; a single one if there is no mixture."""
    cache: Path
    """The folder with those rows that the folders of shards lack."""
    shards: tuple[Shards, ...]
    manifest: ShardManifest
    """The manifest of the folder; of several folders the sum of their manifests, without `files`."""
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows
    words_per_row: float
    """Mean number of white-space-separated words in a row of training; 0 if some shards do not tell."""

    @property
    def names(self) -> list[str]:
        """Names of the corpora of a mixture; none without a mixture."""
        return [one.label for one in self.config] if len(self.config) > 1 else []


def corpus_at(corpora: Sequence[ShardsConfig], row_length: int, cache: Path) -> Corpus:
    """Return the corpus, or the mixture of corpora, whose shards are in folders, in rows of `row_length` slots.

    Rows that the folders lack are taken from `cache`, or packed into it. Shards that are missing, damaged, or do not
    fit those of the first folder raise UserError.
    """
    corpora = [corpus for corpus in corpora if corpus.weight != 0]
    named = [[part for name in corpus.folders for part in parts_of(Path(name))] for corpus in corpora]
    opened = [[open_shards(part) for part in {part.resolve(): part for part in parts}.values()] for parts in named]
    shards = tuple(itertools.chain.from_iterable(opened))
    first = shards[0]
    check_fit(shards)
    path = first.path / TOKENIZER
    tokenizer = load(path)
    if tokenizer.get_vocab_size() != first.manifest.vocabulary_size:
        raise UserError(f"the tokenizer in {first.path} is not that of its tokens: delete the folder to rebuild it")
    special, size = SpecialTokens.of(tokenizer), first.manifest.vocabulary_size
    sides = []
    shares: tuple[float, ...] = ()
    for side in SIDES:
        files = [[find_or_pack(one, side, row_length, special, cache) for one in group] for group in opened]
        sizes = tuple(sum(map(len, group)) for group in files)
        shares = shares or shares_of(corpora, sizes)  # those of the training side
        sides.append(PackedRows(tuple(itertools.chain(*files)), RowOrder(sizes, shares), special, size))
    manifest = joined([one.manifest for one in shards], shares)
    counts = [[one.manifest.train.words for one in group] for group in opened]
    words = [sum(group) if all(group) else 0 for group in counts]
    train, heldout = sides
    means = [share * of / size for share, of, size in zip(shares, words, train.order.sizes, strict=True)]
    words_per_row = sum(means) if all(means) else 0.0
    return Corpus(tuple(corpora), cache, shards, manifest, tokenizer, path, train, heldout, words_per_row)
