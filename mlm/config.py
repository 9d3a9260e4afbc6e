"""A pretraining recipe: every setting of a run, section by section; its defaults are the quick start."""

from pydantic import Field, model_validator

from configs import Config
from mlm.data.corpus import DataConfig
from mlm.data.masking import Masking
from mlm.distributed.device import Precision
from mlm.distributed.parallel import Parallel, ReplicatedData
from mlm.distributed.world import SILENCE_MINUTES
from mlm.model.heads import ModelConfig
from mlm.training.budget import Budget, Steps
from mlm.training.loop import Frequencies
from mlm.training.optim import AdamW, OptimizerConfig
from mlm.training.schedule import AnySchedule, Trapezoid
from tokenizer.cleaning import TextConfig
from tokenizer.vocabulary import VocabularyConfig

RUNS = "runs"
"""Directory of all runs, unless a run's configuration names another."""


class Retention(Config):
    """Which checkpoints stay."""

    newest: int = Field(2, gt=0)
    """The newest ones: a damaged one is skipped where a run goes on, and the one before it taken."""
    best: bool = True
    """The one with the lowest held-out loss, of those saved at a step that was evaluated."""
    every_steps: int | None = Field(None, gt=0)
    """Those at multiples of so many steps; null: none for that reason."""


class TrainConfig(Config):
    """How long and how the weights are changed."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of rows, the masks and dropout."""
    budget: Budget = Steps(steps=2500)
    """When training ends."""
    batch_rows: int = Field(16, gt=0)
    """Rows of a step, over all processes and micro-batches."""
    micro_batch_rows: int | None = Field(None, gt=0)
    """Rows computed at once, to fit memory; null takes the whole batch. Changes nothing but speed, memory,
    and what dropout draws. On CPU they are divided among threads, unless there is dropout."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    precision: Precision = "auto"
    """What matrix products are computed in; auto measures which is faster. Weights are float32."""
    compile: bool | None = None
    """Compile each encoder layer by torch.compile; null: on CUDA, where it pays; on CPU it needs a C++ compiler."""
    intervals: Frequencies = Frequencies()
    """How often the loop stops to tell, to evaluate and to save."""
    keep: Retention = Retention()
    """Which checkpoints stay."""
    most_skipped: int = Field(20, gt=0)
    """Updates in a row that may be skipped, because loss or gradient is not finite, before the run is stopped."""
    silence_minutes: float = Field(SILENCE_MINUTES, gt=0)
    """How long a process may keep the others waiting before they take it for lost."""


class EvaluationConfig(Config):
    """What is measured on held-out text."""

    most_rows: int = Field(256, gt=0)
    """Held-out rows whose masked loss is measured during and after training."""
    baseline_tokens: int = Field(20_000_000, gt=0)
    """Training tokens at the most that the unigram and bigram baselines are counted on."""
    words: int = Field(1000, ge=0)
    """Held-out words hidden one by one for the bits per byte; 0 leaves that measure out."""
    window_bytes: int = Field(96, gt=8)
    """UTF-8 bytes of text around a hidden word, itself counted: the same whatever the vocabulary. At most
    data.row_length - 2, so that it fits a row even byte by byte."""


class PretrainConfig(Config):
    """Every setting of a pretraining run."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called; its directory is named by the time it started and this."""
    runs: str = RUNS
    """Directory of all runs and of the cache of tokenizers and shards."""
    start_from: str | None = None
    """A run (its newest checkpoint), or the folder of one checkpoint, whose weights, tokenizer, model shape and row
    length training starts from, such as runs/x: task-adaptive pretraining (Gururangan et al. 2020)."""
    text: TextConfig = TextConfig()
    """Where the text comes from and how it is cut."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """The byte-pair encoding."""
    data: DataConfig = DataConfig()
    """How text becomes rows."""
    masking: Masking = Masking()
    """Which tokens are predicted, and what the model sees in their place."""
    model: ModelConfig = ModelConfig()
    """The encoder and its head."""
    optim: OptimizerConfig = AdamW(lr=2e-3)
    """What changes the weights."""
    schedule: AnySchedule = Trapezoid()
    """How the learning rate goes up and down with progress through the budget."""
    train: TrainConfig = TrainConfig()
    """How long and how the weights are changed."""
    parallel: Parallel = ReplicatedData()
    """How processes divide the model among them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured on held-out text."""

    @model_validator(mode="after")
    def _window_fits_row(self) -> "PretrainConfig":
        if self.evaluation.words and self.evaluation.window_bytes > self.data.row_length - 2:
            raise ValueError(
                f"evaluation.window_bytes = {self.evaluation.window_bytes} does not fit data.row_length ="
                f" {self.data.row_length}: it may be {self.data.row_length - 2} at the most (or set evaluation.words=0)"
            )
        return self
