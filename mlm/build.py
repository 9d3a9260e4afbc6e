"""Build the components of a pretraining run from its configuration: corpus, task, model, optimizer, length."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs import UserError, check_text
from configs.files import written
from mlm.checkpoint import checkpoint, weights
from mlm.config import CooccurrenceEmbeddings, DataConfig, PretrainConfig, RandomEmbeddings
from mlm.data.batches import IGNORED, Batch, PackedRows
from mlm.data.corpus import Corpus, corpus_at
from mlm.distributed.parallel import ReplicatedData
from mlm.distributed.threads import threads_for
from mlm.distributed.world import World
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialize import initialize
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from mlm.training.budget import StepSize, TrainingLength
from mlm.training.optim import Optimizer
from tokenizer.cache import find_kept_shards, find_or_build_shards, find_or_learn
from tokenizer.cleaning import TextConfig
from tokenizer.mixture import ShardsConfig
from tokenizer.shards import neighbors
from tokenizer.shards.format import parts_of, read_manifest
from tokenizer.shards.rows import source_of
from tokenizer.sources import Mixture, hash_texts
from tokenizer.vocabulary import VocabularyConfig, load, sha256

CACHE = "cache"
"""Folder of tokenizers and shards, beside the runs."""
MOST_EPOCHS = 100
"""Epochs of a corpus of a mixture, beyond which a warning asks whether its weight is meant."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainComponents:
    """Corpus, task, model, optimizer and length of a run."""

    config: PretrainConfig
    world: World
    corpus: Corpus
    task: MaskedLMTask
    model: MaskedLanguageModel
    optimizer: Optimizer
    step_size: StepSize
    length: TrainingLength
    milestones: frozenset[int]
    """Steps at which a checkpoint is saved and kept."""
    threads: int
    """Micro-batches computed at the same time."""


@dataclass(frozen=True)
class RecordedCorpus:
    """A run's record of its corpus: all that finds it again where the text or its tokenizer is gone."""

    tokenizer: Path
    """The tokenizer.json in a checkpoint."""
    fingerprint: str
    """The fingerprint of the text."""
    cache: Path
    """The cache beside the run, or beside what a link to it names, which need not be there."""

    @classmethod
    def of(cls, run: Path, folder: Path, data: Mapping[str, str]) -> "RecordedCorpus":
        """Return the record of a run by one of its checkpoints and the data of its identity."""
        beside = [path.parent / CACHE for path in (run.absolute(), run.resolve())]
        cache = next(filter(Path.is_dir, beside), beside[-1])
        return cls(folder / checkpoint.TOKENIZER, data.get("text_fingerprint", ""), cache)


def build(config: PretrainConfig, world: World, recorded: RecordedCorpus | None = None) -> PretrainComponents:
    """Build data, model and optimizer; `recorded` is of the run to resume, if any.

    Raise a UserError if the corpus is too small for one batch, or a setting does not fit the machine.
    """
    settings, row_length = config.train, config.data.row_length

    def built() -> str:
        corpus = corpus_of(config, recorded)
        return json.dumps([[one.model_dump() for one in corpus.config], str(corpus.cache)])

    corpora, cache = json.loads(world.from_main("building tokenizer and shards", built))
    shards = [ShardsConfig.model_validate(one, strict=False) for one in corpora]
    corpus = corpus_at(shards, row_length, Path(cache))
    rows = len(corpus.train)
    _check_batch(settings.batch_rows, rows, row_length, world)
    micro = min(settings.micro_batch_rows or settings.batch_rows, -(-settings.batch_rows // world.size))
    wanted = world.device.type == "cuda" if settings.compile is None else settings.compile
    compiled = wanted and _can_compile(world)
    alone = compiled or not isinstance(config.parallel, ReplicatedData)
    threads = 1 if alone else threads_for(world, micro, micro * row_length)
    most = config.evaluation.most_rows
    heldout = heldout_batches(corpus.heldout, config.masking, world, most_rows=most, micro_batch_rows=micro)
    _check_heldout(config, corpus, heldout)
    share = -(-micro // threads)
    train, masking = corpus.train, config.masking
    task = MaskedLMTask(
        train, heldout, masking, world, settings.seed, settings.batch_rows, share, compiled, corpus.names
    )
    model = MaskedLanguageModel(config.model, corpus.manifest.vocabulary_size, row_length)
    counted = _counted_embeddings(config, corpus, world) if recorded is None else None
    initialize(model, config.model.encoder, settings.seed, counted)
    model.encoder.requires_grad_(not settings.frozen_encoder)
    config.parallel.place(model, world)
    optimizer = config.optim.build(model)
    if compiled:
        compile_blocks(model)
    batch = settings.batch_rows
    size = StepSize(rows / batch, batch * corpus.train.tokens_per_row, batch * corpus.words_per_row)
    length = settings.budget.training_length(size)
    _warn_of_epochs(task, length)
    milestones = frozenset(map(size.steps_of, settings.keep.at_words))
    if length.steps and milestones and max(milestones) > length.steps and world.is_main:
        most = max(settings.keep.at_words)
        logger.warning("train.keep.at_words = %s is beyond the budget: no checkpoint is kept then", f"{most:,}")
    return PretrainComponents(config, world, corpus, task, model, optimizer, size, length, milestones, threads)


def _check_batch(batch_rows: int, rows: int, row_length: int, world: World) -> None:
    """Raise a UserError if a step has fewer rows than there are processes, or more than the text has."""
    if batch_rows < world.size:
        raise UserError(
            f"train.batch_rows = {batch_rows} rows cannot be divided among {world.size} processes: raise it,"
            " or start fewer"
        )
    if rows < batch_rows:
        raise UserError(
            f"a corpus too small for one batch: {rows} rows of {row_length} tokens,"
            f" but train.batch_rows is {batch_rows}: add text, or set train.batch_rows={rows} or less"
        )


def _counted_embeddings(config: PretrainConfig, corpus: Corpus, world: World) -> dict[str, torch.Tensor] | None:
    """Return the counted embeddings that a new run begins with, if any, from the cache or counted into it."""
    method, encoder = config.initial_embeddings, config.model.encoder
    if isinstance(method, RandomEmbeddings):
        return None
    width = encoder.embedding_width or encoder.width
    path = corpus.cache / f"embeddings-{counted_key(method, corpus, width):.16}.safetensors"

    def found() -> str:
        if not path.exists():
            logger.info("counting the neighbors of %s tokens", f"{corpus.manifest.vocabulary_size:,}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as partial:
                sample = corpus.train.sample(method.most_tokens)
                counted = neighbors.count(*sample, corpus.train.vocabulary_size, method.window, width)
                weights.write(partial, {name: torch.from_numpy(array) for name, array in counted.items()})
        return str(path)

    return weights.read(Path(world.from_main("counting neighbors", found)))


def counted_key(method: CooccurrenceEmbeddings, corpus: Corpus, width: int) -> str:
    """Return a hash of all that counted embeddings depend on."""
    rows = corpus.train
    text = [*map(source_of, corpus.shards), str(rows.order), str(rows.row_length)]
    text += ["no row is counted twice"] if corpus.names else []  # those of a mixture were
    return hash_texts(str(neighbors.VERSION), method.model_dump_json(), str(width), *text)


def _warn_of_epochs(task: MaskedLMTask, length: TrainingLength) -> None:
    for name, read in task.corpus_progress(length.steps or 0).items():
        if read["epochs"] > MOST_EPOCHS and task.world.is_main:
            logger.warning("%s will be read %s times: lower its weight", name, f"{read['epochs']:,.0f}")


def _check_heldout(config: PretrainConfig, corpus: Corpus, heldout: Sequence[Batch]) -> None:
    """Raise a UserError if no token of the held-out rows is hidden, or none of those of one corpus of a mixture."""
    if not any(batch.targets for batch in heldout):
        raise UserError(_nothing_hidden(config, corpus.heldout, heldout))
    for number, name in enumerate(corpus.names):
        if not any((batch.labels_BM[batch.corpora_B == number] != IGNORED).any() for batch in heldout):
            raise UserError(
                f"no token of the held-out rows of {name} is hidden: raise text.heldout_share or masking.rate, or give"
                " it more text"
            )


def _nothing_hidden(config: PretrainConfig, rows: PackedRows, heldout: Sequence[Batch]) -> str:
    """Return the reason why no token of the held-out rows is hidden, and the remedy."""
    rate, specials = config.masking.rate, 2 * rows.special.adds_cls_sep
    most, needed = config.data.row_length - specials, math.ceil(0.5 / rate)
    if needed > most:
        return (
            f"masking.rate = {rate:g} hides no token of rows of {config.data.row_length}: raise it to"
            f" {math.ceil(5e5 / most) / 1e6:g} or more, or data.row_length to {needed + specials} or more"
        )
    segments_BL = torch.cat([batch.segments_BL for batch in heldout])
    longest = int(((segments_BL > 0).sum(dim=1) - specials * segments_BL.amax(dim=1)).max())
    what, remedy = "the held-out text is", "raise text.heldout_share or masking.rate, or add text"
    if len(segments_BL) < len(rows):
        what, remedy = f"evaluation.most_rows = {len(segments_BL)} is", "raise it or masking.rate"
    return (
        f"{what} too small to hide a token of it: a row needs {needed} tokens at masking.rate = {rate:g}, and the"
        f" longest has {longest}: {remedy}"
    )


def with_text_of_shards(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with the text of its shards, if any; raise a UserError if it sets another text."""
    if config.data.shards is None:
        return config
    first = config.data.shards[0].folders[0]
    text = read_manifest(parts_of(Path(first))[0]).text
    if config.text not in (TextConfig(), text) and config.text.absolute() != text:
        raise UserError(
            f"data.shards = {first} was made of another text or by other options than those of text:"
            " remove text, or remove data.shards"
        )
    return config.model_copy(update={"text": text})


def with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with paths of its text, tokenizer and start that hold in any working directory.

    The text of shards is not read: its paths stay as they were when it was encoded. Raise a UserError if a path is no
    text, because the working directory's is none.
    """
    data = config.data
    tokenizer = None if data.tokenizer is None else str(Path(data.tokenizer).absolute())
    shards = data.shards and tuple(
        corpus.model_copy(update={"folders": tuple(str(Path(folder).absolute()) for folder in corpus.folders)})
        for corpus in data.shards
    )
    changed = {
        "start_from": None if config.start_from is None else str(Path(config.start_from).absolute()),
        "text": config.text.absolute() if shards is None else config.text,
        "data": data.model_copy(update={"tokenizer": tokenizer, "shards": shards}),
        "evaluation": config.evaluation.absolute(),
    }
    config = config.model_copy(update=changed)
    check_text(config.model_dump(mode="json"))
    return config


def corpus_of(config: PretrainConfig, recorded: RecordedCorpus | None = None) -> Corpus:
    """Return the corpus, cached or built, or raise a UserError.

    The tokenizer and, where its text is gone, the shards of a run are those that it `recorded`.
    """
    cache = Path(config.runs) / CACHE
    if recorded is None:
        return open_corpus(config.data, config.text, config.vocabulary, cache)
    if recorded.cache.is_dir() or not cache.is_dir():
        cache = recorded.cache
    if config.data.shards is None:
        kept = find_kept_shards(config.text, cache, recorded.tokenizer, recorded.fingerprint)
        if kept is not None:
            return corpus_at([ShardsConfig(folders=(str(kept),))], config.data.row_length, cache)
    return open_corpus(config.data, config.text, config.vocabulary, cache, recorded.tokenizer)


def open_corpus(
    data: DataConfig, text: TextConfig, vocabulary: VocabularyConfig, cache: Path, tokenizer_path: Path | None = None
) -> Corpus:
    """Return the corpus of a configuration; a missing tokenizer and missing shards are built in `cache`.

    `tokenizer_path` replaces the tokenizer.json of `data`, which may be gone. Text, tokenizer or shards that cannot be
    used raise UserError.
    """
    if tokenizer_path is None and data.tokenizer is not None:
        tokenizer_path = Path(data.tokenizer)
    if isinstance(text.source, Mixture) and data.shards is None:
        tokenizer_path = tokenizer_path or find_or_learn(text, vocabulary, cache)
        corpora = []
        for part, alone in zip(text.source.parts, text.corpora(), strict=True):
            folders = (str(find_or_build_shards(alone, vocabulary, cache, tokenizer_path)),)
            corpora.append(ShardsConfig(folders=folders, name=part.name, share=part.share, epochs=part.epochs))
        return corpus_at(corpora, data.row_length, cache)
    if data.shards is None:
        folder = find_or_build_shards(text, vocabulary, cache, tokenizer_path)
        return corpus_at([ShardsConfig(folders=(str(folder),))], data.row_length, cache)
    corpus = corpus_at(data.shards, data.row_length, cache)
    if tokenizer_path is not None and sha256(load(tokenizer_path)) != corpus.manifest.tokenizer_sha256:
        names = ", ".join(str(shards.path) for shards in corpus.shards)
        raise UserError(
            f"data.shards = {names} was encoded with another tokenizer than {tokenizer_path}:"
            " encode the text with that one"
        )
    return corpus


def _can_compile(world: World) -> bool:
    """Return whether torch.compile has a compiler for the device; warn if it has none."""
    variable, compilers = ("CC", ["cc", "gcc", "clang"])
    if world.device.type == "cpu":
        variable, compilers = ("CXX", ["c++", "g++", "clang++"])
    if variable in os.environ:  # torch takes no other then
        compilers = [os.environ[variable]]
    if any(map(shutil.which, compilers)):
        return True
    logger.warning("torch.compile finds no compiler (%s): layers are not compiled", ", ".join(compilers))
    return False


def compile_blocks(model: MaskedLanguageModel) -> None:
    """Compile each encoder layer in place."""
    # The first, the middle and the last blocks differ, in training and evaluation, and so do short last batches.
    torch._dynamo.config.recompile_limit = 64
    for block in model.encoder.blocks:
        block.compile(dynamic=False)
