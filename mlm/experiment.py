"""Pretraining as a function: from a configuration to a trained encoder and its results.

    from mlm.experiment import PretrainConfig, export, pretrain

    run = pretrain(PretrainConfig(name="mine"))
    run.path, run.results, run.model, run.tokenizer
    export(run.path, Path("encoder"))

The functions neither print nor exit; errors are exceptions. They join the processes that torchrun started, or use the
existing process group, and close only a group that they opened.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from configs import UserError, dump, read
from configs.files import write_text
from mlm.build import PretrainComponents, RecordedCorpus, build, with_absolute_paths, with_text_of_shards
from mlm.checkpoint import checkpoint, warm_start
from mlm.checkpoint.interrupt import StopRequest
from mlm.checkpoint.manifest import DETERMINISM, verify
from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus
from mlm.distributed.device import measure_peak, precision_of, with_precision, with_recorded_precision
from mlm.distributed.world import DeviceChoice, World, devices, joined
from mlm.evaluation import fill_blanks, results
from mlm.evaluation.bits_per_byte import check_window
from mlm.evaluation.pairs.accuracy import those_that_fit
from mlm.evaluation.pairs.reading import read_pairs
from mlm.model.heads import MaskedLanguageModel
from mlm.tracking import exported_run, plots, run_directory
from mlm.tracking.exported_run import Exported, export
from mlm.tracking.flops import flops_at
from mlm.tracking.metrics_file import surviving
from mlm.tracking.metrics_logger import MetricsLogger, SamplePredictions
from mlm.tracking.trackers import check_installed
from mlm.training.budget import TrainingProgress
from mlm.training.divergence import DivergenceStop
from mlm.training.loop import LoopSettings, Observer, ratio, train
from tokenizer import vocabulary
from tokenizer.cleaning import TextConfig

__all__ = ["Exported", "PretrainConfig", "PretrainRun", "export", "pretrain", "resume"]

SENTENCES_SHOWN = 5

Stop = Callable[[], int]
_STARTED = set[Path]()
"""Runs that this process started: an attempt before this one made none of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainRun:
    """A pretraining run, finished or stopped and saved."""

    path: Path
    """The run's directory."""
    results: Mapping[str, Any] | None
    """The results, as in results.json, which has null for NaN; None for a stopped run, and on ranks other than 0."""
    summary: str
    """The results, or the way to resume, as text; empty on ranks other than 0."""
    stopped_by: int
    """The largest number that `stop` returned on any rank; 0 for a finished run, whose results are written."""

    @property
    def checkpoint(self) -> Path:
        """Folder of the newest checkpoint."""
        return checkpoint.newest(self.path)

    @cached_property
    def model(self) -> MaskedLanguageModel:
        """The model of the newest checkpoint, on the host, in evaluation mode."""
        return checkpoint.load_model(self.checkpoint, torch.device("cpu"))[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return vocabulary.load(self.checkpoint / checkpoint.TOKENIZER)


@dataclass(frozen=True)
class _Ready:
    """A run that is about to be trained."""

    path: Path
    components: PretrainComponents
    progress: TrainingProgress


@dataclass(frozen=True)
class _Trained:
    """A run whose training has ended; on rank 0 with the logger that its results go to."""

    run: _Ready
    progress: TrainingProgress
    stopped_by: int
    metrics_logger: MetricsLogger | None
    divergence: DivergenceStop


def pretrain(config: PretrainConfig, observers: Sequence[Observer] = (), *, stop: Stop = lambda: 0) -> PretrainRun:
    """Pretrain an encoder in a new run directory; a job that torchrun or SLURM started again resumes its own run.

    `observers` receive the events of training, such as a `ProgressBar`; the run's own files need none. `stop` is called
    after each step: a number other than 0, on any rank, stops training after saving; after the last step, `resume`
    measures the results.

    Raises:
        UserError: data, a setting or the machine cannot be used, or training diverged.
        ConnectionError: another process was lost.
        OSError: the last checkpoint could not be written.
    """
    check_installed(config.tracking)
    resolved = resolve(config)
    from_newest = resolved.start_from != config.start_from
    return _run(with_absolute_paths(resolved), None, observers, stop, from_newest=from_newest)


def resume(path: Path, observers: Sequence[Observer] = (), *, stop: Stop = lambda: 0) -> PretrainRun:
    """Resume a run from its newest undamaged checkpoint; a finished run stays as it is.

    Arguments and errors are those of `pretrain`. A run whose configuration or text was changed raises a UserError.
    """
    run = checkpoint.run_of(path)
    if run != path:
        logger.info("%s is a checkpoint of %s, which resumes from its newest one", path, run)
    if run_directory.origin(run) is not None:
        raise UserError(f"{run} was converted and has no training to resume: start a run from it by start_from={run}")
    return _run(config_of(run), run, observers, stop)


def _run(
    config: PretrainConfig, path: Path | None, observers: Sequence[Observer], stop: Stop, *, from_newest: bool = False
) -> PretrainRun:
    """Train the run at `path`, or that of `config`, which is a new one unless this job began it in an earlier attempt.

    `from_newest` if `start_from` was given as a run, which may have saved a newer checkpoint since that attempt. The
    random state of the caller is kept.
    """
    with ExitStack() as opened:
        with joined(config.train.silence_minutes, _device(config, path)) as world:
            opened.enter_context(torch.random.fork_rng([world.device] if world.device.type == "cuda" else []))
            # Ranks may have found another newest checkpoint to start from, while the run there went on.
            settings = world.from_main("agreeing on the settings", config.model_dump_json)
            config = PretrainConfig.model_validate_json(settings, strict=False)
            path = path or _earlier_run(config, world, from_newest=from_newest)
            if path is None:
                ready = _start(config, world, opened)
                trained: _Trained | PretrainRun = _train(ready, opened, observers, stop)
            else:
                trained = _resume(path, world, opened, observers, stop)
        return _conclude(trained)  # the work of rank 0 alone, for which no other rank waits


def _device(config: PretrainConfig, path: Path | None) -> DeviceChoice:
    """Return the device to ask for: that of the configuration; `auto`, with a warning, if the run to resume lost it."""
    if path is None or config.device in ("auto", *devices()):
        return config.device
    logger.warning("device=%s, on which %s began, is absent: training continues on another device", config.device, path)
    return "auto"


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with the settings of its start and shards.

    Raise a UserError if it contradicts them, or is of a run to be exported that cannot be.
    """
    config = with_text_of_shards(warm_start.resolve(config))
    exported_run.check(config)
    return config


def config_of(path: Path) -> PretrainConfig:
    """Return a run's configuration, or raise a UserError if `path` is not a pretraining run."""
    return read(PretrainConfig, run_directory.config_path(path))


def _earlier_run(config: PretrainConfig, world: World, *, from_newest: bool) -> Path | None:
    """Return the run of `config` that this job saved before torchrun or SLURM started it again, if any."""
    if not world.restarted:
        return None

    def is_mine(path: Path) -> bool:
        try:
            theirs, ours = read(PretrainConfig, path / checkpoint.CONFIG), config
            if config.text == config.text.unpinned():
                theirs = theirs.model_copy(update={"text": theirs.text.unpinned()})
            if from_newest:
                theirs, ours = _whenever_started(theirs), _whenever_started(ours)
            same = path not in _STARTED and theirs == ours
            return same and run_directory.read_json(path / run_directory.ENVIRONMENT).get("job") == world.job
        except UserError:  # ignore directories in runs/ that are not pretraining runs
            return False

    def newest() -> str:
        runs = run_directory.newest_first(Path(config.runs), run_directory.PRETRAINING)
        mine = (path for path in runs if checkpoint.completed(path) and is_mine(path))
        return str(next(mine, ""))

    found = world.from_main("looking for this job's run", newest)
    return Path(found) if found else None


def _whenever_started(config: PretrainConfig) -> PretrainConfig:
    """Return a configuration without the checkpoint of `start_from`, whose run may have saved newer ones since."""
    if config.start_from is None:
        return config
    start, data = Path(config.start_from), config.data.model_copy(update={"tokenizer": None})
    run = start.parents[1] if start.parent.name == checkpoint.CHECKPOINTS else start  # the checkpoint may be gone
    return config.model_copy(update={"start_from": str(run), "data": data})


def _resume(
    path: Path, world: World, opened: ExitStack, observers: Sequence[Observer], stop: Stop
) -> _Trained | PretrainRun:
    """Train the run at `path` to its end, or return a finished one as it is; `opened` holds its lock."""
    found = path / run_directory.RESULTS

    def has_results() -> str:
        opened.enter_context(run_directory.lock(path))  # in here, so that all ranks hear of a run that is in use
        return "yes" if found.exists() else ""

    if not world.from_main("looking for the run's results", has_results):
        return _train(_restore(path, world), opened, observers, stop)
    if not world.is_main:
        return PretrainRun(path, None, "", 0)
    return PretrainRun(path, run_directory.read_json(found), f"{path} is finished: its results are in {found}", 0)


def _start(config: PretrainConfig, world: World, opened: ExitStack) -> _Ready:
    """Make the directory and the components of a new run; `opened` holds its lock."""
    if config.data.shards is None:  # else the text is not read again
        text = world.from_main("finding the text", lambda: config.text.pinned().model_dump_json())
        config = config.model_copy(update={"text": TextConfig.model_validate_json(text, strict=False)})
    world = with_precision(world, config.train.precision)
    components = build(config, world)
    if config.evaluation.words:
        check_window(components.corpus.tokenizer, config.evaluation.window_bytes, config.data.row_length)
    if (names := config.evaluation.pairs) is not None:  # those that cannot be measured are told before training
        tokenizer, most, row_length = components.corpus.tokenizer, config.evaluation.most_pairs, config.data.row_length
        check = partial(those_that_fit, tokenizer, row_length=row_length)
        world.from_main("reading minimal pairs", lambda: str(len(check(read_pairs(names, most)))))
    started_from = warm_start.load_start(config, components.model)

    def create() -> str:
        path = run_directory.create(Path(config.runs), config.name)
        _STARTED.add(path)
        return str(path)

    path = Path(world.from_main("making the run's directory", create))
    if world.is_main:
        opened.enter_context(run_directory.lock(path))
        write_text(path / checkpoint.CONFIG, dump(config))
        environment = run_directory.environment(world) | {"kind": run_directory.PRETRAINING, "job": world.job}
        environment |= started_from | _data(components.corpus)
        run_directory.write_json(path / run_directory.ENVIRONMENT, environment)
    return _Ready(path, components, TrainingProgress())


def _restore(path: Path, world: World) -> _Ready:
    """Restore a run from its newest undamaged checkpoint."""
    config = config_of(path)
    folder = Path(world.from_main("checking the newest checkpoint", lambda: str(checkpoint.newest_undamaged(path))))
    identity = run_directory.run_identity(path)
    if identity.determinism != DETERMINISM:
        raise UserError(
            f"{path} was begun in version {identity.determinism} of the order of rows and of dropout, and this code"
            f" trains in version {DETERMINISM}: resume it with the code that began it, or start a new run from its"
            f" weights by start_from={path}"
        )
    if config != read(PretrainConfig, folder / checkpoint.CONFIG):
        raise UserError(f"{path / checkpoint.CONFIG} was changed since the run began: undo that, or start a new run")
    world = with_recorded_precision(world, identity.precision)
    components = build(config, world, RecordedCorpus.of(path, folder, identity.data))
    if _data(components.corpus)["data"] != identity.data:
        raise UserError(f"the text of {path} is not the text that the run began with: put it back, or start a new run")
    if world.is_main and precision_of(world.dtype) != identity.precision:
        environment = run_directory.read_json(path / run_directory.ENVIRONMENT)
        environment["went_on_in"] = precision_of(world.dtype)
        run_directory.write_json(path / run_directory.ENVIRONMENT, environment)
    return _Ready(path, components, checkpoint.load_training(folder, components.model, components.optimizer))


def _train(ready: _Ready, opened: ExitStack, observers: Sequence[Observer], stop: Stop) -> _Trained:
    """Train until the run's length is reached, `stop` requests an end on any rank, or training has diverged.

    `opened` closes the logger of rank 0, if an error does not let it be closed with the results.
    """
    components, config, world = ready.components, ready.components.config, ready.components.world
    divergence = DivergenceStop(config.train.most_skipped)
    tokenizer, milestones = components.corpus.tokenizer_path, components.milestones
    writer = CheckpointWriter(ready.path, config, tokenizer, world, ready.progress, milestones)
    all_observers: list[Observer] = [writer, divergence]
    metrics_logger = _metrics_logger(ready) if world.is_main else None
    if metrics_logger is not None:
        opened.callback(metrics_logger.close, None)
        all_observers.append(metrics_logger)
        threads = f", {components.threads} threads" if components.threads > 1 else ""
        tokens = components.corpus.manifest.train.tokens
        logger.info("run %s: %s training tokens, %s%s", ready.path, f"{tokens:,}", world, threads)
        for remark in components.corpus.manifest.remarks():
            logger.info(remark)
        if config.export == "checkpoints":
            all_observers.append(exported_run.CheckpointExports(ready.path, writer))
    all_observers += [SamplePredictions(partial(_filled, components), metrics_logger), *observers]
    settings = LoopSettings(
        components.optimizer,
        config.schedule,
        components.length,
        intervals=config.train.intervals,
        clip_norm=config.train.clip_norm,
        seed=config.train.seed,
        threads=components.threads,
        milestones=components.milestones,
    )
    request = StopRequest(stop)

    def must_stop() -> bool:
        return request.is_made() or divergence.has_diverged

    end = train(components.model, components.task, settings, world, all_observers, start=ready.progress, stop=must_stop)
    request.is_made()  # a signal may have come after the last step's question; the results can be measured on resuming
    return _Trained(ready, end, world.max(request.number), metrics_logger, divergence)


def _conclude(trained: _Trained | PretrainRun) -> PretrainRun:
    """Measure the model saved last, and write the results, on rank 0; raise a UserError if training diverged."""
    if isinstance(trained, PretrainRun):  # finished before, and perhaps killed while it was exported
        if trained.results is not None:
            exported_run.export_at_end(trained.path, config_of(trained.path))
        return trained
    path, components, metrics_logger = trained.run.path, trained.run.components, trained.metrics_logger
    if metrics_logger is None:
        return PretrainRun(path, None, "", trained.stopped_by)
    if trained.stopped_by or not components.length.finished(trained.progress):
        metrics_logger.close(None)
        return _stopped(trained)
    model, _, _ = checkpoint.load_model(checkpoint.step_folder(path, trained.progress.step), components.world.device)
    records = list(run_directory.read_metrics(path / run_directory.METRICS))
    scores = _measured(trained, model) | warm_start.scores_at_start(components.config, records)
    metrics_logger.close(scores)
    if not math.isfinite(scores["heldout"]["loss"]):
        logger.warning("training diverged, the held-out loss is not finite: lower optim.lr")
    with surviving("LEARNING CURVE", path):
        plots.draw(records, path / "curves.png", scores["baselines"])
    exported_run.export_at_end(path, components.config)
    return PretrainRun(path, scores, results.summary(path, scores, _filled(components, model)), 0)


def _stopped(trained: _Trained) -> PretrainRun:
    """Return a run that was told to stop; raise a UserError if it stopped because it diverged."""
    path = trained.run.path
    saved = f"step {trained.progress.step} is saved; resume: python -m mlm.pretrain --resume {path}"
    if not trained.stopped_by:
        raise UserError(
            f"stopped: {trained.divergence.consecutive_skips} updates in a row were skipped, because loss or"
            f" gradient was not finite: start again with a lower optim.lr ({saved})"
        )
    return PretrainRun(path, None, f"stopped: {saved}", trained.stopped_by)


def _measured(trained: _Trained, model: MaskedLanguageModel) -> dict[str, Any]:
    """Return the results of the model saved last, which rank 0 measures alone."""
    components, end, size = trained.run.components, trained.progress, trained.run.components.step_size
    task = replace(components.task, world=components.world.single(), compiled=False)
    files = verify(checkpoint.step_folder(trained.run.path, end.step), checkpoint.MODEL_FILES).files
    scores: dict[str, Any] = results.measure(components.config, components.corpus, task, model)
    scores |= {"tokens": end.tokens, "steps": end.step, "seconds": end.seconds}
    scores |= {"words": round(end.step * size.words) or None, "epochs": end.step / size.steps_per_epoch}
    scores |= {"tokens_per_second": ratio(end.tokens, end.seconds), "weights_sha256": files[checkpoint.WEIGHTS].sha256}
    for name, amounts in task.corpus_progress(end.step).items():
        scores["corpora"][name] |= amounts
    return scores


def _filled(components: PretrainComponents, model: nn.Module) -> str:
    """Return the first held-out sentences, their blanks filled in by `model`."""
    task, tokenizer, world = components.task, components.corpus.tokenizer, components.world
    # These few sentences are not worth another compilation.
    with torch.compiler.set_stance("force_eager") if task.compiled else nullcontext():
        filled = fill_blanks.sample_predictions(model, task.heldout[0], tokenizer, world, SENTENCES_SHOWN)
    return "\n\n".join(filled)


def _metrics_logger(ready: _Ready) -> MetricsLogger:
    components, config = ready.components, ready.components.config
    world, task, encoder = components.world, components.task, config.model.encoder
    slots = min(task.micro_batch_rows, task.batch_rows) * config.data.row_length
    operations = flops_at(config, components.corpus)
    peak = measure_peak(world.device, world.dtype, slots, encoder.width, encoder.feedforward_width)
    logged = task.documents, operations, peak * world.size, ready.progress, task.corpus_progress
    return MetricsLogger(ready.path, config, *logged)


def _data(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.manifest
    return {
        "data": {"text_fingerprint": manifest.text_fingerprint, "tokenizer_sha256": manifest.tokenizer_sha256},
        "packages": [asdict(package) for package in manifest.packages],
    }
