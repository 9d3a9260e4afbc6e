"""The configuration of a pretraining run, section by section; its defaults are the quick start."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from configs import Config, Texts, as_list
from mlm.data.masking import Masking
from mlm.distributed.device import Precision
from mlm.distributed.parallel import Parallel, ReplicatedData
from mlm.distributed.world import SILENCE_MINUTES, DeviceChoice
from mlm.model.heads import ModelConfig
from mlm.training.budget import Budget, Steps
from mlm.training.loop import Intervals
from mlm.training.optim import AdamW, OptimizerConfig
from mlm.training.schedule import AnySchedule, Trapezoid
from tokenizer.cleaning import TextConfig
from tokenizer.mixture import ShardsConfig, as_corpora, check_weights
from tokenizer.shards.packing import ROW_LENGTHS
from tokenizer.vocabulary import VocabularyConfig

RUNS = "runs"
"""Directory of all runs, unless a run's configuration names another."""
LONGEST_NAME = 200
"""Characters of a run's name: with the time it is the name of a directory, which may have 255 bytes."""

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Tracking = Annotated[
    tuple[TrackerName, ...], BeforeValidator(as_list, json_schema_input_type=TrackerName | tuple[TrackerName, ...])
]
"""The tools that show a run beside its metrics.jsonl; a single one may be written without a list."""


class Retention(Config):
    """The checkpoints to keep."""

    newest: int = Field(2, gt=0)
    """The number of newest ones; a run resumes from the newest undamaged one."""
    best: bool = True
    """The one with the lowest held-out loss among those saved at an evaluated step."""
    every_steps: int | None = Field(None, gt=0)
    """Those at multiples of this number of steps; null keeps none for that reason."""
    at_words: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Those after these numbers of white-space-separated words shown, at which checkpoints are then saved."""


class DataConfig(Config):
    """The rows, and the tokenizer or shards that they are made from."""

    row_length: int = Field(128, ge=ROW_LENGTHS[0], le=ROW_LENGTHS[-1])
    """Tokens in a row, special tokens counted. Segments are packed into rows and never see each other."""
    tokenizer: str | None = None
    """A tokenizer.json to use unchanged, ours or that of a published encoder; null trains one, as `vocabulary` says."""
    shards: (
        Annotated[
            tuple[ShardsConfig, ...],
            AfterValidator(check_weights),
            BeforeValidator(as_corpora, json_schema_input_type=str | tuple[str, ...] | tuple[ShardsConfig, ...]),
            Field(min_length=1),
        ]
        | None
    ) = None
    """One or several folders made by tokenizer.encode, read as one corpus with the tokenizer in them, as [a, b]. Or a
    mixture of corpora with weights, as [{folders: a, share: 0.7}, {folders: [b, c], share: 0.3}]: each has its share of
    every 100,000 rows, and its own epochs. No text is read, and `text` becomes that of the first folder. All
    folders must have the same tokenizer and `text.segments`. Keep their texts apart: a document in two folders is read
    twice, or leaks into the held-out text. null builds shards from `text`, or finds them in the cache."""


class RandomEmbeddings(Config):
    """Random embeddings, and an output bias of 0."""

    kind: Literal["random"] = "random"


class CooccurrenceEmbeddings(Config):
    """Embeddings by the neighbors of each token in the training text, and an output bias by its frequency.

    Tokens with the same neighbors then begin alike. A rare token is seldom read or predicted, so training its random
    embedding takes long.
    """

    kind: Literal["cooccurrence"] = "cooccurrence"
    window: int = Field(4, gt=0)
    """Largest distance of neighbors, in tokens; those at distance d count 1/d."""
    most_tokens: int = Field(20_000_000, gt=0)
    """Largest number of training tokens that are counted, in rows drawn at random; of a mixture, by its shares."""


class TrainConfig(Config):
    """Length, batches, precision and checkpoints of training."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of rows, the masks and dropout."""
    budget: Budget = Steps(steps=2500)
    """The end of training: tokens, words, epochs, steps or minutes."""
    batch_rows: int = Field(16, gt=0)
    """Rows of a step, over all processes and micro-batches."""
    micro_batch_rows: int | None = Field(None, gt=0)
    """Rows computed at once, to fit memory; null takes the whole batch. It changes only speed, memory and the random
    numbers of dropout. On CPU the rows are divided among threads."""
    frozen_encoder: bool = False
    """Train the head alone: the transform and the output bias. A checkpoint without a head needs this first."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    precision: Precision = "auto"
    """Precision of matrix products; auto measures and takes the faster one. Weights are float32."""
    compile: bool | None = None
    """Compile each encoder layer by torch.compile; null compiles on CUDA only. On CPU it needs a C++ compiler."""
    intervals: Intervals = Intervals()
    """Steps between two logs, evaluations and checkpoints."""
    keep: Retention = Retention()
    """The checkpoints to keep."""
    most_skipped: int = Field(20, gt=0)
    """Skipped updates in a row, for a loss or gradient that is not finite, that end training at the next log."""
    silence_minutes: float = Field(SILENCE_MINUTES, gt=0)
    """Minutes that a process may keep the others waiting before they treat it as lost."""


class EvaluationConfig(Config):
    """The measurements on held-out text."""

    most_rows: int = Field(256, gt=0)
    """Held-out rows whose masked loss is measured during and after training."""
    baseline_tokens: int = Field(20_000_000, gt=0)
    """Largest number of training tokens that the unigram and bigram baselines are counted on."""
    words: int = Field(1000, ge=0)
    """Held-out words hidden one by one for the bits per byte; 0 skips that measure."""
    window_bytes: int = Field(96, gt=8)
    """UTF-8 bytes of text around a hidden word, itself included, for every vocabulary. At most data.row_length - 2, or
    one less with a prefix space, so that the text fits a row even byte by byte."""
    pairs: Texts | None = None
    """Files of minimal pairs to judge at the end, as python -m mlm.evaluate --pairs takes them; []: those of a small
    grammar of English; null: none."""
    most_pairs: int | None = Field(None, gt=0)
    """Largest number of pairs of a paradigm; null: all."""

    def absolute(self) -> Self:
        """Return the same measurements by paths of pairs that hold in any working directory."""
        names = (str(Path(name).absolute()) if Path(name).exists() else name for name in self.pairs or ())
        return self.model_copy(update={"pairs": self.pairs and tuple(names)})


class PretrainConfig(Config):
    """Every setting of a pretraining run."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the run; its directory is named by the start time and this name."""
    runs: str = RUNS
    """Directory of all runs and of the cache of tokenizers and shards."""
    device: DeviceChoice = "auto"
    """The device to compute on; auto: a CUDA GPU where there is one, else the CPU. mps is that of Apple's processors,
    unverified: no run of this project has been made on one. A resumed run whose device is absent takes auto."""
    start_from: str | None = None
    """A run such as runs/x (its newest checkpoint), or the folder of one checkpoint. Training starts from its weights,
    tokenizer, model shape and row length: task-adaptive pretraining (Gururangan et al. 2020)."""
    text: TextConfig = TextConfig()
    """The source, cleaning and segmentation of the text."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """The byte-pair encoding to learn; not read where data.tokenizer, data.shards or start_from bring one."""
    data: DataConfig = DataConfig()
    """The packing of text into rows."""
    masking: Masking = Masking()
    """The choice of tokens to predict, and their replacement in the model's input."""
    model: ModelConfig = ModelConfig()
    """The encoder and its head."""
    initial_embeddings: Annotated[RandomEmbeddings | CooccurrenceEmbeddings, Field(discriminator="kind")] = (
        RandomEmbeddings()
    )
    """The embeddings of tokens before the first step; start_from brings its own."""
    optim: OptimizerConfig = AdamW(lr=2e-3)
    """The optimizer."""
    schedule: AnySchedule = Trapezoid()
    """The learning rate as a function of the used share of the budget."""
    train: TrainConfig = TrainConfig()
    """Length, batches, precision and checkpoints of training."""
    parallel: Parallel = ReplicatedData()
    """The division of the work among processes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The measurements on held-out text."""
    tracking: Tracking = ("tensorboard",)
    """Tools that show the metrics beside metrics.jsonl: tensorboard, wandb, mlflow, trackio, or several as
    [tensorboard, trackio]. All but the first need the extra of their name; by default they need no account and no
    network."""
    export: Literal["none", "end", "checkpoints"] = "none"
    """Export to plain transformers: the last checkpoint into the run's `export`, or each kept one into a folder there.
    It needs the extra `hub`. Training waits for each export; one that fails is a warning."""

    @model_validator(mode="after")
    def _window_fits_row(self) -> "PretrainConfig":
        longest = self.data.row_length - 2 - self.vocabulary.add_prefix_space
        if self.evaluation.words and self.evaluation.window_bytes > longest:
            raise ValueError(
                f"evaluation.window_bytes = {self.evaluation.window_bytes} does not fit data.row_length ="
                f" {self.data.row_length}: it may be at most {longest} (or set evaluation.words=0)"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_a_section_that_left(cls, values: Any) -> Any:
        """Drop `detection: null`, which stands in runs that were made while such a second task was an option."""
        if isinstance(values, dict) and "detection" in values and values["detection"] in (None, "null"):
            return {name: value for name, value in values.items() if name != "detection"}
        return values

    @model_validator(mode="after")
    def _embeddings_have_one_origin(self) -> "PretrainConfig":
        if self.start_from is not None and not isinstance(self.initial_embeddings, RandomEmbeddings):
            raise ValueError(
                f"initial_embeddings.kind={self.initial_embeddings.kind} would replace the trained embeddings of"
                f" start_from = {self.start_from}: set initial_embeddings.kind=random, or remove start_from"
            )
        return self

    @model_validator(mode="after")
    def _frozen_encoder_is_trained(self) -> "PretrainConfig":
        if self.train.frozen_encoder and self.start_from is None:
            raise ValueError(
                "train.frozen_encoder=true would leave the encoder at random weights: name a trained one by start_from"
            )
        return self
