"""Several folders of shards, read as one corpus or as a mixture."""

from collections import Counter
from collections.abc import Sequence

from configs import UserError
from tokenizer.cleaning import Reason
from tokenizer.shards.format import TOKENIZER, ShardManifest, Shards
from tokenizer.sources import hash_texts


def check_fit(shards: Sequence[Shards]) -> None:
    """Raise a UserError if folders differ in their tokenizer or segments, or hold the same text."""
    first, *others = shards
    ours, same = first.manifest, {first.manifest.text_fingerprint: first}
    for other in others:
        theirs = other.manifest
        if theirs.tokenizer_sha256 != ours.tokenizer_sha256:
            raise UserError(
                f"data.shards: {other.path} was encoded with another tokenizer than {first.path}: encode its text with"
                f" --tokenizer {first.path / TOKENIZER}, or remove it"
            )
        if (earlier := same.setdefault(theirs.text_fingerprint, other)) is not other:
            raise UserError(f"data.shards: {other.path} holds the same text as {earlier.path}: remove one of them")
        if theirs.text.segments != ours.text.segments:
            raise UserError(
                f"data.shards: {other.path} has text.segments = {theirs.text.segments}, and {first.path} has"
                f" {ours.text.segments}: encode one of them again, or remove it"
            )


def joined(manifests: Sequence[ShardManifest], shares: Sequence[float]) -> ShardManifest:
    """Return the manifest of several folders read as one corpus; that of one folder is unchanged."""
    first, *others = manifests
    if not others:
        return first
    weights = map(repr, shares) if len(shares) > 1 else ()
    dropped: Counter[Reason] = sum((Counter(manifest.dropped) for manifest in manifests), Counter())
    return first.model_copy(
        update={
            "text_fingerprint": hash_texts(*(manifest.text_fingerprint for manifest in manifests), *weights),
            "train": sum((manifest.train for manifest in others), first.train),
            "heldout": sum((manifest.heldout for manifest in others), first.heldout),
            "dropped": dict(dropped),
            "split_at_sentences": any(manifest.split_at_sentences for manifest in manifests),
            "files": {},
            "packages": tuple(package for manifest in manifests for package in manifest.packages),
        }
    )
