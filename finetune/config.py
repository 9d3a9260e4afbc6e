"""Every setting of a fine-tuning run, section by section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from configs import Config
from finetune.data.augment import Augmentation
from finetune.data.bigram_shift import BigramShift
from finetune.data.labelled import ClassificationData
from finetune.data.splits import Fractions, Splitting
from finetune.encoders import EncoderChoice
from finetune.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS, Metric
from finetune.heads import Head
from finetune.heads.cnn import CnnHead
from finetune.training.trainable import Layers, Trainable
from mlm.config import LONGEST_NAME, RUNS, Tracking
from mlm.distributed.device import Precision
from mlm.distributed.world import DeviceChoice
from mlm.training.optim import AdamW, ScheduleFreeAdamW
from mlm.training.schedule import AnySchedule, Linear


def _without_default(schema: JsonDict) -> None:
    """Let a schema name no default, which is a head of one command and not of the other."""
    schema.pop("default")


class EarlyStopping(Config):
    """The choice of the best weights, and the end of training without better ones."""

    metric: Metric = "accuracy"
    """Metric on the validation part by which the best weights are chosen; of equals, the first."""
    patience: int | None = Field(None, gt=0)
    """Number of evaluations without better weights after which training ends; null: never."""


class TrainConfig(Config):
    """Length, batches and rules of training."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    """Seeds of the head's initial weights, the order and dropout; each split is trained on once with each."""
    epochs: float = Field(4.0, gt=0, le=10_000)
    """Number of passes over the training part."""
    batch_examples: int = Field(32, gt=0)
    """Number of examples of a step (the effective batch size), over all processes and micro-batches."""
    micro_batch_examples: int | None = Field(None, gt=0)
    """Number of examples of a micro-batch, to fit memory; null: the whole batch. The gradient is the same."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient; longer gradients are scaled down to it."""
    precision: Precision = "auto"
    """Precision of matrix products; auto measures the faster one. Weights are float32."""
    evaluations_per_epoch: int = Field(1, gt=0)
    """Number of evaluations on the validation part in an epoch."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class has the same share of the loss, whatever its number of examples."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass taken from the true class and spread over all (Szegedy et al. 2016, section 7)."""
    early_stopping: EarlyStopping = EarlyStopping()
    """The choice of the best weights, and the end of training without better ones."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> "TrainConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {', '.join(map(str, self.seeds))}: name each once")
        return self


FinetuneOptimizer = Annotated[AdamW | ScheduleFreeAdamW, Field(discriminator="kind")]


class FinetuneConfig(Config):
    """Every setting of a fine-tuning run."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the run; its directory is named by the time of its start and this name. null: the name of the data."""
    runs: str = RUNS
    """Directory of all runs."""
    device: DeviceChoice = "auto"
    """The device to compute on; auto: a CUDA GPU where there is one, else the CPU. mps is that of Apple's processors,
    unverified: no run of this project has been made on one."""
    encoder: EncoderChoice = EncoderChoice()
    """The choice of the encoder."""
    head: Head = Field(CnnHead(), json_schema_extra=_without_default)
    """The head."""
    data: ClassificationData = BigramShift()
    """The labelled texts."""
    splits: Splitting = Fractions()
    """The split into training, validation and test parts."""
    trainable: Trainable = Layers()
    """The trained parameters, and their learning rates."""
    augment: Augmentation = Augmentation()
    """The changes of training texts in each epoch."""
    optim: FinetuneOptimizer = AdamW(lr=5e-4)
    """The optimizer."""
    schedule: AnySchedule = Linear(warmup=0.1)
    """The schedule of the learning rate over the epochs."""
    train: TrainConfig = TrainConfig()
    """Length, batches and rules of training."""
    tracking: Tracking = ("tensorboard",)
    """Tools that show the metrics beside metrics.jsonl: tensorboard, wandb, mlflow, trackio, or several as
    [tensorboard, trackio]. All but the first need the extra of their name; by default they need no account and no
    network."""
    control: bool = False
    """Also train a randomly initialized encoder of the same shape, on the same splits with the same seeds. Without
    pretraining there are no predictions, so augment.replace leaves its texts alone."""

    @model_validator(mode="after")
    def _fits(self) -> "FinetuneConfig":
        if self.encoder.random and self.control:
            raise ValueError("encoder.random=true is the control itself: remove control=true")
        metric, wanted = self.train.early_stopping.metric, getattr(self.data, "target", "class")
        fitting = NUMBER_METRICS if wanted == "number" else CLASS_METRICS
        if metric not in fitting:
            mend = f"choose one of {', '.join(fitting)}"
            raise ValueError(f"train.early_stopping.metric = {metric} is no measure of a {wanted}: {mend}")
        if wanted == "number" and (self.train.class_weights != "none" or self.train.label_smoothing):
            raise ValueError("train.class_weights and train.label_smoothing are of classes: remove them")
        if self.encoder.random and self.augment.replace:
            raise ValueError("augment.replace needs a pretrained encoder, not encoder.random=true: set it to 0")
        return self
