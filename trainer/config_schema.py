"""The whole configuration surface: what may be set, its type, its unit and its default.

`trainer.config` reads files into it. The resolved configuration is immutable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.cadence import Average, Duration
from trainer.config_yaml import write_yaml
from trainer.data.sizes import MOST, ImageSizes, image_sizes
from trainer.secrets import redact

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Bits = Literal[1, 32]
Option = bool | int | float | str


class Group(BaseModel):
    """A strict, frozen group of values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunConfig(Group):
    """Where a run lives: its files go to `dir/name/`."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="folder name, no path"
    )
    dir: str = Field("runs", min_length=1, max_length=2000, description="parent folder; also holds mlflow.db")
    time_limit_min: Positive | None = Field(None, description="save and stop (exit 85) after this many minutes")
    start_timeout_s: Positive | None = Field(
        1800.0, description="longest time without progress until the first step is done (exit 5); null: no limit"
    )
    step_timeout_s: Positive | None = Field(600.0, description="longest time without progress later; null: no limit")


class ModelConfig(Group):
    """Which backbone, at how many bits."""

    name: str = Field("resnet18_1w1a", description="a timm model name; `reste summary --list` prints the binary ones")
    weight_bits: Bits = Field(1, description="1 or 32 (full precision)")
    activation_bits: Bits = Field(1, description="1 or 32 (full precision)")
    numerics: Literal["default", "reference"] = Field("default", description="reference: the official arithmetic")
    num_classes: Count | None = Field(None, description="null: as many as the data has")
    init: str | None = Field(
        None, description="checkpoint whose weights training starts from; stage:NAME: the run NAME beside this one"
    )
    init_at: Literal["best", "last"] = Field("best", description="which checkpoint, where init names a run")
    transfer: str | None = Field(
        None, description="how another network's weights become this one's, e.g. copy; null: both must be the same"
    )

    @field_validator("name")
    @classmethod
    def _name_is_no_address(cls, value: str) -> str:
        # timm would fetch such a model, or build what a folder's files describe.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError("must be the name of a model, not an address or a folder (hf-hub:, local-dir:)")
        return value


class EstimatorConfig(Group):
    """The gradient estimator of the sign, and ReSTE's power schedule."""

    name: str = Field("reste", description="of weights and activations; `reste summary --list` prints them")
    weights: str | None = Field(None, description="another estimator for weights; null: the same")
    options: dict[str, Option] = Field({}, description="what else the estimator of `name` takes")
    weights_options: dict[str, Option] = Field({}, description="what else the estimator of `weights` takes")
    o_end: Annotated[float, Field(ge=1.0)] = Field(3.0, description="power at the end of training")
    threshold: Positive | None = Field(
        None, description="slope is zero beyond |x| = threshold; null: the estimator's own"
    )
    knee: Positive | None = Field(None, description="chord slope within |x| <= knee; null: the estimator's own")
    normalize: bool | None = Field(
        None, description="reste: slope of the same size at every power; null: yes, but no with reference numerics"
    )
    granularity: Literal["step", "epoch"] = Field("step", description="how often the power moves; reference: epoch")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    by_layer: Literal["together", "first", "last"] = Field(
        "together", description="whose power rises first: all layers' at once, the first layers', the last ones'"
    )
    hold_instability: Positive | None = Field(
        None, description="gradient instability at which probes hold the power, from 1 to o_end; null: the schedule"
    )


class QuantizerConfig(Group):
    """What is done to weights and activations beside taking their sign."""

    weight: str | None = Field(None, description="before the sign of a weight; null: the model's own choice, or none")
    activation: str | None = Field(None, description="before the sign of an input; null: the same")
    scaling: str | None = Field(None, description="what multiplies a weight's signs; null: the model's own, or layer")
    scaling_options: dict[str, Option] = Field({}, description="what else the scaling takes")
    options: dict[str, dict[str, Option]] = Field({}, description="what else a quantiser takes, under its name")


class SyntheticConfig(Group):
    """Made-up images for `data.loader: synthetic`."""

    samples: Count = 1024
    classes: Count = 10


class ExpectConfig(Group):
    """What the data set must hold; checked before training, and used by --dry-run when the data is not there."""

    train: Count | None = None
    val: Count | None = None
    classes: Count | None = None


class DataConfig(Group):
    """Where images come from and who decodes them."""

    root: str = Field("data", description="a folder prepared by `reste prepare`")
    loader: Literal["dali", "torchvision", "synthetic"] = "dali"
    image_size: Count = Field(224, description="pixels, height = width")
    image_size_schedule: tuple[tuple[Duration, Count], ...] = Field(
        (), description="pixels of training images from an epoch on, as [[0ep, 128], [65%, 176]]; []: image_size"
    )
    workers: Count = Field(8, description="decoder threads per rank")
    prefetch: Count = Field(3, description="batches ready per rank")
    decode_share: Fraction | None = Field(
        None, description="share of JPEGs that a GPU's decoder unit gets, its cores the rest; null: DALI's own choice"
    )
    dont_use_mmap: bool = Field(False, description="true: plain reads, for network file systems")
    synthetic: SyntheticConfig = SyntheticConfig()
    expect: ExpectConfig = ExpectConfig()
    on_error: Literal["stop", "quarantine"] = Field(
        "stop", description="a training image that cannot be read: end the run (exit 3), or put another in its place"
    )
    max_quarantined: Annotated[int, Field(ge=0)] = Field(
        100, description="images replaced before the run ends all the same"
    )


class AugmentConfig(Group):
    """Training crops and flips, evaluation crop, normalisation (on 0..1 pixels)."""

    crop: Literal["rrc", "pad", "none"] = Field("rrc", description="RandomResizedCrop, padded crop, whole image")
    scale: tuple[Positive, Positive] = Field((0.08, 1.0), description="rrc: share of the image's area")
    ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="rrc: width / height")
    pad: Annotated[int, Field(ge=0)] = Field(4, description="pad: pixels on each side")
    flip: bool = Field(True, description="mirror half of the training images")
    eval_resize: Count | None = Field(
        None,
        description="shorter side before the centre crop; null: 8/7 image_size with rrc, else image_size",
    )
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)

    @field_validator("scale", "ratio")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("must be the least and the largest, in this order")
        return value


class TrainConfig(Group):
    """The step."""

    epochs: Count = 250
    max_steps: Count | None = Field(None, description="end after this many steps; schedules keep their full length")
    batch_size: Count = Field(750, description="global: over all ranks and micro-batches")
    accumulation: Count = Field(1, description="micro-batches per step")
    drop_last: bool = Field(False, description="leave out an epoch's smaller last batch")
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = Field("fp32", description="bf16 and fp16 through autocast")
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the training step")
    recompute: bool = Field(
        False, description="compiled: signs are computed again in the backward pass, not kept; less memory, some time"
    )
    cuda_graphs: bool = Field(False, description="compiled, on a GPU: kernels are replayed as CUDA graphs")
    kernels: Literal["compiled", "triton"] = Field(
        "compiled", description="signs and slopes by plain torch code, or by fused kernels on a GPU"
    )
    tf32: bool = Field(True, description="TF32 matrix products on GPUs that have them")
    deterministic: bool = Field(False, description="bit-identical runs on GPUs too, slower")
    clip_norm: Positive | None = Field(None, description="largest gradient norm; null: no clipping")
    reduce_dtype: Literal["full", "bf16", "fp16"] = Field(
        "full", description="what gradients travel in between ranks; 16 bits halve the bytes and round"
    )
    label_smoothing: Fraction = 0.0
    nonfinite: str = Field(
        "abort",
        pattern=r"^(abort|rollback|skip [1-9]\d{0,5})$",
        description="a loss or gradient that is not finite: abort (exit 4), skip N steps at most, rollback",
    )
    ema: Average | None = Field(
        None, description="moving average of the weights, which is then evaluated: its span (1ep, 500) or decay (0.999)"
    )


class DistillConfig(Group):
    """A trained network that teaches this one, and what is learned from it."""

    teacher: str | None = Field(
        None,
        min_length=1,
        pattern=r"^(stage:[A-Za-z0-9][A-Za-z0-9._-]*|[A-Za-z0-9][A-Za-z0-9_.-]*|[^:]*/.*)$",
        description="a model of timm with its weights, a checkpoint's folder (with a slash), or stage:NAME",
    )
    weight: NonNegative = Field(1.0, description="of the distance to the teacher's answers")
    temperature: Positive = Field(1.0, description="that both networks' logits are divided by in it")
    labels: NonNegative = Field(1.0, description="weight of the labels' cross-entropy; 0: the teacher's answers alone")
    attention: NonNegative = Field(0.0, description="weight of the distance between attention maps")
    attention_norm: Literal["max", "l2"] = Field("max", description="what an attention map is divided by")

    @model_validator(mode="after")
    def _there_is_a_loss(self) -> DistillConfig:
        if self.teacher is not None and not (self.weight or self.labels or self.attention):
            raise ValueError("weight, labels and attention are all 0: there is nothing to minimise")
        return self


class OptimConfig(Group):
    """The optimizer (timm's factory) and the learning rate's schedule."""

    name: str = Field("sgd", description="sgd, adamw or any name of timm's optimizer factory")
    lr: Positive = Field(0.1, description="peak learning rate")
    binary_lr: Literal["auto"] | Positive = Field(
        "auto",
        description="rate of binary weights, as a multiple of lr; auto: 8 on short schedules, 1 from 4000 steps on; "
        "reference: 1",
    )
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    no_decay: tuple[Literal["binary", "weight", "norm", "bias"], ...] = Field(
        ("norm", "bias"), description="parameter roles without decay; reference: []"
    )
    nesterov: bool = False
    schedule: Literal["cosine", "linear", "step", "constant", "reference"] = Field(
        "cosine", description="reference: the official cosine, every epoch, whose warm-up shifts it"
    )
    granularity: Literal["step", "epoch"] = Field("step", description="how often the rate moves; reference: epoch")
    warmup: Duration = Field("0ep", description="linear warm-up, e.g. 5ep, 500 (steps), 2%")
    min_lr: NonNegative = 0.0
    milestones: tuple[Fraction, ...] = Field(
        (1 / 3, 2 / 3, 8 / 9), description="step: shares of training after which lr *= gamma"
    )
    gamma: Positive = 0.1


class SyncImages(Group):
    """Synchronise over the smallest group of ranks whose joint batch holds this many images."""

    images: Count


class BatchNormConfig(Group):
    """Which ranks share batch statistics, and how running statistics follow them."""

    sync: Literal["off", "world"] | SyncImages = Field("world", description="off, world or {images: N}")
    momentum: Literal["auto", "decay", "fixed"] = Field(
        "auto",
        description="of running statistics: decay falls with the learning rate, to a fifth, less in short trainings; "
        "fixed stays, as published; auto: decay, but fixed with reference numerics",
    )


class EvalConfig(Group):
    """Evaluation during training."""

    every: Duration = "1ep"
    batch_size: Count | None = Field(None, description="global; null: train.batch_size")


class LogConfig(Group):
    """What is written when."""

    every: Duration = Field("10", description="steps between journal entries")
    indicators_every: Duration = Field("100", description="steps between probes of the indicators")
    print_s: Positive = Field(5.0, description="seconds between progress lines where there is no terminal")
    profile: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,6}\+[1-9]\d{0,2}$",
        description="STEP+N: after STEP steps of a start, record where the time of N steps goes",
    )


class CheckpointConfig(Group):
    """Checkpoints are directories, complete once their manifest is there."""

    every: Duration = "1ep"
    keep: Annotated[int, Field(ge=2)] = Field(2, description="newest ones kept, beside the best")


class TrackingConfig(Group):
    """MLflow, fed from the journal by a thread of its own."""

    enabled: bool = True
    uri: str | None = Field(None, description="null: SQLite in run.dir")
    experiment: str = "reste"
    report: bool = Field(False, description="at the end, draw the page of `reste report` and keep it with the run")
    parent: str | None = Field(None, description="id of the MLflow run that this run is part of; a study sets it")


class RegistryConfig(Group):
    """MLflow's model registry, at the end of a run."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$",
        max_length=200,
        description="register the best checkpoint of the finished run under this name; null: do not",
    )


class StageConfig(Group):
    """One of the trainings that follow each other."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100, description="of its folder")
    set: dict[str, Any] = Field({}, description="what it has otherwise than the file around it, by dotted keys")
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="its epochs, as a share of train.epochs around it; null: what `set` or the file says"
    )
    transfer: str | None = Field(
        "copy", description="how the weights of the stage before become its own; null: it starts from new weights"
    )
    start: Literal["best", "last"] = Field("best", description="which checkpoint of the stage before")
    teacher: str | None = Field(None, description="an earlier stage; sets distill.teacher")

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str) -> str:
        if value in ("checkpoints", "logs", "slurm", "faults", "card"):
            raise ValueError("is the name of a folder that every run has: choose another")
        return value


class DeepSpeedConfig(Group):
    """What DeepSpeed does where `engine` is deepspeed; everything else that it is told follows from other groups."""

    zero: Literal[0, 1] = Field(0, description="1: each rank keeps and updates its part of the optimizer's state")
    config: str | None = Field(None, description="JSON file of further DeepSpeed settings; contradictions are refused")


class Config(Group):
    """The resolved configuration of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    resume: str = Field("auto", description="auto, never, or a checkpoint folder of the same configuration")
    engine: Literal["ddp", "deepspeed"] = Field("ddp", description="who averages gradients and updates weights")
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    estimator: EstimatorConfig = EstimatorConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    batchnorm: BatchNormConfig = BatchNormConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    registry: RegistryConfig = RegistryConfig()
    stages: tuple[StageConfig, ...] = Field((), description="trainings that follow each other; []: there is one")

    @field_validator("stages")
    @classmethod
    def _stages_know_those_before(cls, value: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in value]
        for number, stage in enumerate(value):
            if stage.name in names[:number]:
                raise ValueError(f"there are two stages {stage.name}: each needs a name of its own")
            if stage.teacher is not None and stage.teacher not in names[:number]:
                raise ValueError(f"the teacher of {stage.name} is {stage.teacher}, which is no earlier stage")
        return value

    @field_validator("resume")
    @classmethod
    def _resume_is_not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("must be auto, never or a checkpoint folder")
        return value

    @model_validator(mode="after")
    def _batch_holds_its_micro_batches(self) -> Config:
        if self.train.accumulation > self.train.batch_size:
            raise ValueError(
                f"train.accumulation={self.train.accumulation} exceeds train.batch_size={self.train.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _graphs_are_of_compiled_code(self) -> Config:
        if self.train.cuda_graphs and not self.train.compile:
            raise ValueError("train.cuda_graphs=true replays compiled code: set train.compile=true")
        if self.train.cuda_graphs and self.train.accumulation > 1:
            raise ValueError(
                "train.cuda_graphs=true with train.accumulation above 1: a replay writes over the gradients of the "
                "micro-batch before; set one of the two back"
            )
        return self

    @model_validator(mode="after")
    def _a_compiler_makes_a_graph_of_every_size(self) -> Config:
        uneven = self.train.batch_size % self.train.accumulation > 0
        if self.train.compile and uneven and 2 * len({side for _, side in self.data.image_size_schedule}) > MOST:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} in {self.train.accumulation} micro-batches makes two sizes, "
                f"and a compiler keeps {MOST} graphs: choose a multiple, or fewer sides in data.image_size_schedule"
            )
        return self

    @model_validator(mode="after")
    def _a_steered_power_is_measured(self) -> Config:
        if self.estimator.hold_instability is not None:
            if self.estimator.by_layer != "together":
                raise ValueError("estimator.hold_instability steers all layers alike: use estimator.by_layer=together")
            if not float(self.log.indicators_every.removesuffix("%").removesuffix("ep")):
                raise ValueError("estimator.hold_instability needs probes: use log.indicators_every=100")
            if self.model.weight_bits != 1:
                raise ValueError("estimator.hold_instability is measured on binary weights: use model.weight_bits=1")
        return self

    @model_validator(mode="after")
    def _what_is_registered_is_tracked(self) -> Config:
        if self.registry.name is not None and not self.tracking.enabled:
            raise ValueError("registry.name needs tracking.enabled=true: a registered model belongs to a run of MLflow")
        return self

    @model_validator(mode="after")
    def _gradients_travel_as_the_engine_can(self) -> Config:
        if self.engine == "deepspeed" and self.train.reduce_dtype != "full":
            raise ValueError(
                f"train.reduce_dtype={self.train.reduce_dtype} needs engine=ddp: for DeepSpeed, write "
                "communication_data_type into the file that deepspeed.config names"
            )
        return self

    @model_validator(mode="after")
    def _image_sizes_are_a_schedule(self) -> Config:
        try:
            _ = self.image_sizes
        except ValueError as error:
            raise ValueError(f"data.image_size_schedule: {error}") from None
        return self

    @property
    def image_sizes(self) -> ImageSizes:
        """Pixels of training images, by epoch."""
        return image_sizes(self.data.image_size_schedule, self.data.image_size, self.train.epochs)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir) / self.run.name

    @property
    def eval_resize(self) -> int:
        """Shorter side, in pixels, before the evaluation's centre crop."""
        if self.augment.eval_resize is not None:
            return self.augment.eval_resize
        return round(self.data.image_size * 8 / 7) if self.augment.crop == "rrc" else self.data.image_size

    def to_yaml(self) -> str:
        """The configuration as YAML that `load_config` reads back to an equal one.

        Only a password in `tracking.uri` is not in it, since the text is stored, sent and shown.
        """
        values = json.loads(self.model_dump_json())
        if self.tracking.uri is not None:
            values["tracking"]["uri"] = redact(self.tracking.uri)
        return write_yaml(values)
