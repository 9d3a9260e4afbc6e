"""Every setting of a fine-tuning run, section by section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Config
from finetune.data.augment import Augmentation
from finetune.data.bigram_shift import BigramShift
from finetune.data.labelled import ClassificationData
from finetune.data.splits import Fractions, Splitting
from finetune.encoders import EncoderChoice
from finetune.evaluation.metrics import Metric
from finetune.heads import Head
from finetune.heads.cnn import CnnHead
from finetune.training.trainable import Layers, Trainable
from mlm.distributed.device import Precision
from mlm.training.optim import AdamW, ScheduleFreeAdamW
from mlm.training.schedule import AnySchedule, Linear


class EarlyStopping(Config):
    """Which weights of a training are kept, and when it ends before its time."""

    metric: Metric = "accuracy"
    """What is best on the validation part decides; of equals, the first."""
    patience: int | None = Field(None, gt=0)
    """Evaluations without a better one after which training ends; null: it goes on to its last epoch."""


class TrainConfig(Config):
    """How long and how the weights are changed."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    """Each split is trained on once with each seed: of the head's initial weights, the order, and dropout."""
    epochs: float = Field(4.0, gt=0, le=10_000)
    """Passes over the training part."""
    batch_examples: int = Field(32, gt=0)
    """Examples of a step (the effective batch size), over all processes and micro-batches."""
    micro_batch_examples: int | None = Field(None, gt=0)
    """Examples computed at once, to fit memory; null takes the whole batch. The gradient is the same."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient; longer ones are scaled down to it."""
    precision: Precision = "auto"
    """What matrix products are computed in; auto measures which is faster. Weights are float32."""
    evaluations_per_epoch: int = Field(1, gt=0)
    """How often the validation part is evaluated."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class has the same share of the loss, however many examples it has."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass taken from the true class and shared among all (Szegedy et al. 2016, section 7)."""
    early_stopping: EarlyStopping = EarlyStopping()
    """Which weights are kept, and when training ends before its time."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> "TrainConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {', '.join(map(str, self.seeds))}: name each once")
        return self


FinetuneOptimizer = Annotated[AdamW | ScheduleFreeAdamW, Field(discriminator="kind")]


class FinetuneConfig(Config):
    """Every setting of a fine-tuning run."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called; its directory is named by the time it started and this. null: as its data is."""
    runs: str = "runs"
    """Directory of all runs."""
    encoder: EncoderChoice = EncoderChoice()
    """Which encoder is fine-tuned."""
    head: Head = CnnHead()
    """The head."""
    data: ClassificationData = BigramShift()
    """The labelled texts."""
    splits: Splitting = Fractions()
    """How the examples are parted into training, validation and test."""
    trainable: Trainable = Layers()
    """What is trained, and at which share of the learning rate."""
    augment: Augmentation = Augmentation()
    """How training texts are changed anew each epoch."""
    optim: FinetuneOptimizer = AdamW(lr=5e-4)
    """What changes the weights."""
    schedule: AnySchedule = Linear(warmup=0.1)
    """How the learning rate goes up and down with progress through the epochs."""
    train: TrainConfig = TrainConfig()
    """How long and how the weights are changed."""
    control: bool = False
    """Train a randomly initialised encoder of the same shape as well, on the same splits with the same seeds."""

    @model_validator(mode="after")
    def _control_is_another(self) -> "FinetuneConfig":
        if self.encoder.random and self.control:
            raise ValueError("encoder.random=true is the control itself: leave out control")
        if self.encoder.random and self.augment.replace:
            raise ValueError(
                "augment.replace asks the pretrained encoder, which encoder.random leaves out: set it to 0"
            )
        return self
