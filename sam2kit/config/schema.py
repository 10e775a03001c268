"""Define the configuration: the dataclasses are the only schema and hold the only defaults.

YAML files under ``configs/`` hold differences from these defaults; :mod:`sam2kit.config.loading`
combines the two. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any  # OmegaConf reads the annotations at run time, in Python 3.10 too

PROMPT_TYPES = ("mask", "box", "point")
NEGATIVE_KINDS = ("near", "border", "object", "anywhere")
SIZES = ("nano", "t", "s", "b+", "l")
NOISE_KINDS = ("shift", "scale", "dilate", "erode", "jitter")
DATASET_TYPES = ("video", "coco", "sav", "files", "images", "synthetic", "mixture")


RUN, PATH, MACHINE = "run", "path", "machine"
"""Who decides a key: what a run is (its checkpoint says so too), where files are, or how this
machine is used. Of a checkpoint the keys of RUN alone are obeyed: it may be a stranger's file."""


def option(
    default: Any,
    help: str,
    scope: str = RUN,
    *,
    choices: Sequence[str] | None = None,
    **limits: float,
) -> Any:
    """Declare a configuration key.

    Choices and limits hold for the value, or for each item of a list or dictionary; a null that the
    type allows always passes. :func:`sam2kit.config.validation.check` reads them.

    Args:
        default: a value; a list or dictionary is copied for each configuration.
        help: the line that documents it (``--create-config`` writes it out).
        scope: :data:`RUN`, :data:`PATH` or :data:`MACHINE`.
        choices: the texts that are allowed.
        limits: ``ge``, ``gt``, ``le`` or ``lt`` (at least, above, at most, below) of a number,
            which then must be finite.
    """
    metadata = {"help": help, "scope": scope, "choices": choices, "limits": limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


amount = partial(option, ge=0)
count = partial(option, ge=1)
share = partial(option, ge=0, le=1)

# What says where videos come from, and may differ between the sources of a mixture.
SOURCE_KEYS = (
    "type",
    "data_path",
    "masks_path",
    "annotation_file",
    "identity",
    "split",
    "sav_masklets",
    "synthetic_objects",
    "synthetic_videos",
    "synthetic_motion",
    "synthetic_lifelike",
    "synthetic_photos",
)


@dataclass
class DatasetConfig:
    """Where training clips come from and how they are prompted."""

    type: str = option(
        "video",
        "video (frame folders), coco (COCO JSON), sav (SA-V), files (video files), images (single "
        "pictures), synthetic (generated) or mixture (docs/data.md)",
        choices=DATASET_TYPES,
    )
    data_path: str | None = option(
        None, "folder of the videos; for coco the root of file_name", PATH
    )
    masks_path: str | None = option(
        None,
        "where masks are that do not lie beside their frames: a folder with one for each video, or "
        "for type files a COCO JSON",
        PATH,
    )
    annotation_file: str | None = option(
        None, "the COCO JSON (type coco only), or several as a pattern: labels/*.json", PATH
    )
    identity: str = option(
        "auto",
        "what is one object of type coco: track (by track, instance or object ids), category, auto "
        "(track where there are ids, else category); components, of any type with masks: each "
        "connected component, followed from frame to frame",
        choices=("auto", "track", "category", "components"),
    )
    keyframes_only: bool = option(
        True, "leave out masks of frames that a COCO JSON flags as no key frames (interpolated)"
    )
    split: str | None = option(
        None, "list of video names: a text file, or its name under ImageSets (2016/train)", PATH
    )
    corrections: str | None = option(
        None,
        "corrections.jsonl of the prompt debugger: its masks replace the data set's",
        PATH,
    )
    sav_masklets: str = option(
        "manual", "which masklets of SA-V: manual, auto or both", choices=("manual", "auto", "both")
    )
    mixture: list[dict[str, Any]] = option(
        [],
        "the sources of type mixture: each type, data_path and so on, and weight (1), its share of "
        "the clips in an epoch",
        PATH,
    )
    video_clip_length: int = count(5, "frames in a clip, at least 1")
    frame_stride: int = count(1, "take every n-th frame")
    max_gap: int = amount(
        0, "between two frames of a training clip leave out up to so many more (of every n-th)"
    )
    short_videos: str = option(
        "turn_back",
        "videos shorter than a clip: turn_back (played forwards and backwards) or error",
        choices=("turn_back", "error"),
    )
    clips_per_video: int = count(1, "clips drawn from each video in an epoch")
    image_size: int = option(512, "frames are squashed to this square; a multiple of 32")
    batch_size: int = count(1, "clips in a batch")
    num_workers: int = amount(2, "processes that load clips; 0 loads in the main process", MACHINE)
    max_objects: int | None = count(3, "at most this many objects a clip; null: all")
    min_objects: int = count(
        1, "begin training clips where so many objects are visible, if such a frame is soon found"
    )
    synthetic_objects: int = count(
        3, "at most this many generated objects a clip, for videos without masks and type synthetic"
    )
    synthetic_videos: int = count(256, "videos in an epoch of type synthetic")
    synthetic_motion: float = amount(
        0.14, "mean way of a generated object on one frame as a share of its diameter"
    )
    synthetic_lifelike: float = share(
        0.0,
        "share of the videos of type synthetic that come closer to filmed video: a moving camera, "
        "blur, changing light, shadows, limbs, objects that leave or are wholly hidden and come "
        "back, speeds from slow to twice the mean",
    )
    synthetic_photos: str | None = option(
        None,
        "folder of pictures from which lifelike videos take most of their surfaces; null: all "
        "surfaces are generated",
        PATH,
    )
    augment: bool = option(
        False, "flip, crop, reverse and recolour training clips, by the strengths in augmentation"
    )
    prompt_types: list[str] = option(
        ["mask"], "any of mask, box, point; each object draws one", choices=PROMPT_TYPES
    )
    prompt_probabilities: list[float] | None = share(
        None, "one probability for each of prompt_types; null: equal"
    )
    prompt_per_batch: bool = option(
        False, "all objects of a batch draw the same of prompt_types, which trains faster"
    )
    num_positive_points: int = count(1, "positive clicks of a point prompt")
    num_negative_points: int = amount(0, "negative clicks of a point prompt")
    negative_kinds: list[str] = option(
        ["near"],
        "where negative clicks fall, each click draws one: near (around the object), border (just "
        "outside it), object (on another object of the clip, else border) or anywhere",
        choices=NEGATIVE_KINDS,
    )
    include_center: bool = option(True, "the first positive click is the object's centre")
    box_noise: float = amount(
        0.0, "move a box's sides at random by up to this share of its size, and up to 20 pixels"
    )
    mask_noise: float = amount(
        0.0, "move, grow or shrink masks of prompts by up to this share of the object's size"
    )
    max_conditioning_frames: int = count(
        1, "prompt each object on 1 to this many frames: the first it is visible on, and others"
    )
    correction_clicks: int = amount(
        0, "clicks on each corrected frame, where the prediction is wrong (box and point prompts)"
    )
    max_correction_frames: int = count(
        1, "correct the prompted frames and others, up to this many frames an object"
    )
    correction_from_truth: float = share(
        0.0, "probability that a correction click falls anywhere on the object instead"
    )

    def parts(self) -> list[DatasetConfig]:
        """The sources of a mixture as configurations; without one, this configuration alone."""
        if self.type != "mixture":
            return [self]
        return [self.part(entry) for entry in self.mixture]

    def part(self, entry: dict[str, Any]) -> DatasetConfig:
        """One source of a mixture; what its entry does not say is as it is here."""
        own = {key: value for key, value in entry.items() if key != "weight"}
        return replace(self, **({"type": "video", "mixture": [], "corrections": None} | own))


@dataclass
class AugmentationConfig:
    """What dataset.augment does to a training clip; all at 0 leaves it as it is."""

    reverse: float = share(0.5, "probability that a clip is played backwards")
    flip: float = share(0.5, "probability that it is mirrored left to right")
    crop: float = option(
        0.3, "cut away up to this share of the frame's area; blow up the rest", ge=0, le=0.9
    )
    stretch: float = share(0.1, "the cut part is up to this share wider or higher than the frame")
    degrees: float = option(0.0, "turn by up to so many degrees, either way", ge=0, le=180)
    shear: float = option(0.0, "slant by up to so many degrees, either way", ge=0, le=60)
    scale: float = option(0.0, "shrink or enlarge by up to this share", ge=0, le=0.9)
    translate: float = share(0.0, "move by up to this share of the frame's width and height")
    brightness: float = share(0.2, "change brightness by up to this share, alike on all frames")
    contrast: float = share(0.2, "as brightness, of the contrast")
    saturation: float = share(0.2, "as brightness, of the saturation")
    grayscale: float = share(0.0, "probability that a clip loses its colours")
    frame_brightness: float = share(0.0, "as brightness, on top of it, each frame by itself")
    frame_contrast: float = share(0.0, "as frame_brightness, of the contrast")
    frame_saturation: float = share(0.0, "as frame_brightness, of the saturation")


@dataclass
class ValDatasetConfig:
    """Where validation clips come from. A null key is taken from ``dataset``."""

    type: str | None = option(None, "as dataset.type")
    data_path: str | None = option(None, "as dataset.data_path", PATH)
    masks_path: str | None = option(
        None, "as dataset.masks_path, which counts where type and data_path are null too", PATH
    )
    annotation_file: str | None = option(None, "as dataset.annotation_file", PATH)
    split: str | None = option(None, "as dataset.split, of the validation videos", PATH)
    fraction: float = option(
        0.2,
        "share of the training videos held out when neither data_path, annotation_file nor split "
        "is given here",
        gt=0,
        lt=1,
    )
    video_clip_length: int | None = option(None, "frames in a clip; null: as dataset")
    frame_stride: int | None = option(None, "null: as dataset")
    batch_size: int = option(1, "clips in a batch")
    max_objects: int | None = option(None, "at most this many objects a clip; null: all")
    synthetic_videos: int = option(16, "videos of type synthetic")
    prompt_types: list[str] = option(["mask"], "as dataset.prompt_types")


@dataclass
class ModelConfig:
    """Which SAM 2 is built and which of its modules are trained."""

    size: str = option(
        "t", "nano, t, s, b+ or l (SAM 2.1; nano is the kit's own small one)", choices=SIZES
    )
    checkpoint: str | None = option(
        None,
        "official-format .pt, a run's folder, .ckpt or adapter.pt, or a name such as "
        "sam2.1_hiera_tiny; null: random",
        PATH,
    )
    trainable_modules: list[str] = option(
        ["memory_attention", "memory_encoder"],
        "module names or globs; '*' trains everything (docs/architecture.md lists the groups)",
    )
    reset_modules: list[str] = option([], "module names or globs set back to random start values")
    memory_attention_bias: float = option(
        0.0,
        "start value of the memory cross-attention's rotary query and key biases; 3 lets a model "
        "from random weights attend to the same place in the memory (of no effect on what a "
        "checkpoint brings)",
    )
    object_score_bias: float = option(
        0.0,
        "start value of the object score's bias; 3 keeps random weights from clamping masks away",
    )
    lora_modules: list[str] = option(
        [],
        "module names or globs whose linear layers get LoRA: they are frozen, and small matrices "
        "beside them are trained (needs the extra lora)",
    )
    lora_rank: int = count(8, "rank of LoRA's matrices")
    lora_alpha: float = option(16.0, "LoRA's product is scaled by lora_alpha / lora_rank", gt=0)
    lora_dropout: float = option(
        0.0, "share of a LoRA layer's inputs that is dropped in training", ge=0, lt=1
    )
    detach_memory_every: int | None = count(
        None,
        "after every so many frames gradient no longer flows back through the memories; 1 leaves "
        "the memory encoder without any; null: never",
    )
    activation_checkpointing: bool = option(
        False, "compute each frame again in the backward pass: less memory, the same gradients"
    )
    objects_together: int | None = count(
        None,
        "track at most so many objects in one call: the same result, and with "
        "activation_checkpointing less memory; null: all",
    )
    memory_dropout: float | None = share(
        None,
        "dropout everywhere in the memory attention; 0 is faster and takes less memory; null: the "
        "size's own (0.1, nano 0)",
    )
    attention_dropout: float | None = share(
        None, "that of the attention's weights, where it is to differ from memory_dropout"
    )
    compile: bool = option(
        False,
        "compile the image encoder and the memory attention (torch.compile): minutes at the start, "
        "for runs of hours; needs a C++ compiler on a CPU",
        MACHINE,
    )
    drop_path_rate: float = option(0.0, "stochastic depth of the image encoder's trunk", ge=0, lt=1)


@dataclass
class LossConfig:
    """Weights of the terms of the training loss; 0 leaves a term out."""

    type: str = option(
        "frames",
        "frames: the answer of each frame, mean over frames; steps: every answer of the decoder, "
        "of three masks the best, summed over frames as upstream does",
        choices=("frames", "steps"),
    )
    focal: float = amount(0.0, "focal loss of the mask, mean over pixels")
    bce: float = amount(1.0, "binary cross-entropy of the mask, mean over pixels")
    dice: float = amount(1.0, "1 - soft Dice of the mask")
    iou: float = amount(0.5, "1 - soft Jaccard index of the mask")
    temporal: float = amount(0.1, "change of probability between frames against the truth's change")
    iou_head: float = amount(0.0, "L1 between the predicted and the reached IoU")
    object_score: float = amount(0.0, "cross-entropy of the score that says an object is visible")
    bce_positive_weight: float = count(
        1.0, "largest weight of object pixels in the cross-entropy; 1 counts all pixels alike"
    )


@dataclass
class OptimizerConfig:
    """AdamW."""

    name: str = option("adamw", "adamw", choices=("adamw",))
    lr: float = option(1e-4, "peak learning rate", gt=0)
    weight_decay: float = amount(0.01, "not applied to biases, norms and single tokens")
    betas: list[float] = option([0.9, 0.999], "AdamW's two betas", ge=0, lt=1)
    module_lr: dict[str, float] = option(
        {},
        "peak learning rates of their own, by module name or glob; the last that fits counts",
        gt=0,
    )
    module_weight_decay: dict[str, float] = amount({}, "as module_lr, for the weight decay")
    layer_decay: float = option(
        1.0, "each trunk layer's learning rate is this times that of the layer above it", gt=0, le=1
    )


@dataclass
class SchedulerConfig:
    """Linear warm-up, then cosine (or constant), set anew at every step."""

    name: str = option("cosine", "cosine or constant", choices=("cosine", "constant"))
    warmup_steps: int = amount(0, "steps of linear warm-up from 0")
    min_lr_ratio: float = share(0.1, "the cosine ends at this share of optimizer.lr")


@dataclass
class TrainerConfig:
    """How Lightning's Trainer runs."""

    max_epochs: int = count(10, "epochs")
    max_steps: int = option(-1, "stop after this many optimizer steps; -1: no limit")
    max_time: str | None = option(
        None,
        "stop after this time, DD:HH:MM:SS, whatever the schedule has left; null: no limit",
    )
    accelerator: str = option(
        "auto", "auto, cpu, gpu, mps", MACHINE, choices=("auto", "cpu", "gpu", "cuda", "mps")
    )
    devices: str = option(
        "1", "number of devices of a machine, a list such as 0,1, or auto", MACHINE
    )
    num_nodes: int = count(
        1, "number of machines, each with that many devices (docs/scale.md)", MACHINE
    )
    strategy: str = option(
        "auto",
        "ddp, or auto: ddp on several devices, none on a single one",
        MACHINE,
        choices=("auto", "ddp"),
    )
    precision: str = option(
        "auto",
        "32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed on a GPU that has it, else 32",
        MACHINE,
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
    )
    gradient_clip_val: float | None = option(1.0, "largest gradient norm; null: no clipping", gt=0)
    accumulate_grad_batches: int = count(1, "batches in an optimizer step")
    log_every_n_steps: int = count(10, "steps between two log lines")
    check_val_every_n_epoch: int = count(1, "epochs between two validations")
    limit_train_batches: int | None = count(None, "at most this many batches an epoch")
    limit_val_batches: int | None = count(None, "at most this many validation batches")
    early_stopping_patience: int | None = count(
        None, "stop after this many validations without a lower validation loss; null: never"
    )
    ema_decay: float | None = option(
        None,
        "validate and save the exponential moving average of the weights, which keeps this share "
        "of itself at a step (0.995, say); null: the weights themselves",
        gt=0,
        lt=1,
    )
    audit: str = option(
        "stop",
        "before the first step, a module that is to train and gets no gradient: stop, warn or off",
        choices=("stop", "warn", "off"),
    )
    logger: str = option(
        "tensorboard",
        "tensorboard, wandb or swanlab",
        MACHINE,
        choices=("tensorboard", "wandb", "swanlab"),
    )
    checkpoint_minutes: float | None = amount(
        10.0,
        "write last.ckpt after so many minutes within an epoch too, for a run that is killed; "
        "null: at an epoch's end alone",
        MACHINE,
    )
    checkpoint_steps: int | None = count(
        None,
        "write last.ckpt after so many steps within an epoch too; null: as the minutes say",
        MACHINE,
    )
    keep_checkpoints: int = amount(
        0, "keep so many of the last.ckpt written, older ones too, as step-N.ckpt", MACHINE
    )
    resume_from: str | None = option(None, "a run's last.ckpt to continue from", MACHINE)


@dataclass
class FeaturesConfig:
    """The cache of the frozen image encoder's features (docs/speed.md)."""

    cache: str = option(
        "auto",
        "auto: read a frame's features from disk where the encoder is frozen and frames come "
        "again as they were; on: refuse to train where that is not so; off: encode every time",
        MACHINE,
        choices=("auto", "on", "off"),
    )
    folder: str | None = option(
        None,
        "a folder for them alone; null: features in $SAM2KIT_CACHE, by default ~/.cache/sam2kit",
        MACHINE,
    )
    budget_gb: float = amount(
        50.0, "gigabytes in that folder at which nothing more is written to it", MACHINE
    )
    dtype: str = option(
        "exact",
        "exact: as they are computed; bfloat16: rounded for training, half of the disk",
        MACHINE,
        choices=("exact", "bfloat16"),
    )


@dataclass
class EvaluationConfig:
    """How whole videos are prompted, tracked and scored (docs/evaluation.md)."""

    protocol: str = option(
        "mask",
        "prompt of each object on the first frame it is seen on: mask, box or clicks",
        choices=("mask", "box", "clicks"),
    )
    clicks: int = count(
        1, "protocol clicks: the object's centre, then each where the error is deepest"
    )
    reprompt_every: int | None = count(
        None, "prompt an object again after so many frames, once it is seen; null: never"
    )
    noise: float = share(0.0, "prompts are off by up to this share of the object's size")
    noise_kinds: list[str] = option(
        list(NOISE_KINDS),
        "any of shift, scale, dilate, erode, jitter; each prompt takes its own",
        choices=NOISE_KINDS,
    )
    noise_levels: list[float] = share(
        [], "track again at each of these in place of noise, for curves of robustness"
    )
    convention: str | None = option(
        None,
        "which frames count, and how: prompted, davis2016, davis2017, sav, all_frames; null: "
        "prompted, or that of the data where results of others are scored",
        choices=("prompted", "davis2016", "davis2017", "sav", "all_frames"),
    )
    compare: dict[str, str] = option(
        {},
        "further models on the same prompts: the name to show, and a checkpoint or its name",
        PATH,
    )
    calibration_videos: int = amount(
        0, "choose thresholds on this many training videos and show them as one more tracker"
    )
    tracker: dict[str, Any] = option(
        {}, "conventions of tracking that differ from upstream's (docs/tracking.md)"
    )


@dataclass
class Config:
    """Everything a run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    valdataset: ValDatasetConfig = field(default_factory=ValDatasetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    recipe: str = option(
        "memory", "the recipe this began from: memory or official", choices=("memory", "official")
    )
    seed: int = option(
        42, "seed of weights, sampling, augmentation and prompts", ge=0, le=2**32 - 1
    )
    use_wandb: bool = option(False, "log to Weights & Biases in place of trainer.logger", MACHINE)
    output_dir: str = option("outputs", "runs go to a dated folder under this one", MACHINE)
    log_level: str = option(
        "INFO",
        "DEBUG, INFO, WARNING or ERROR",
        MACHINE,
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    debug: bool = option(False, "set by --debug: the run is marked as such")

    @property
    def logger(self) -> str:
        """The logger in use: ``use_wandb`` wins over ``trainer.logger``."""
        return "wandb" if self.use_wandb else self.trainer.logger

    @property
    def holds_out_validation(self) -> bool:
        """Whether validation videos are held out of the training videos."""
        val = self.valdataset
        return val.data_path is None and val.annotation_file is None and val.split is None

    def validation_dataset(self) -> DatasetConfig:
        """``valdataset`` as a full :class:`DatasetConfig`, nulls taken from ``dataset``."""
        own = {
            f.name: getattr(self.valdataset, f.name)
            for f in fields(ValDatasetConfig)
            if f.name != "fraction"
        }
        # Masks that lie elsewhere are those of the training videos' own folder.
        elsewhere = self.valdataset.type is not None or self.valdataset.data_path is not None
        kept = ("max_objects", "masks_path") if elsewhere else ("max_objects",)
        own = {k: v for k, v in own.items() if v is not None or k in kept}
        return replace(
            self.dataset,
            **own,
            clips_per_video=1,
            max_gap=0,
            min_objects=1,
            augment=False,
            prompt_probabilities=None,
            box_noise=0.0,
            mask_noise=0.0,
            max_conditioning_frames=1,
            correction_clicks=0,
        )


def get(config: Config, key: str) -> Any:
    """The value of a dotted key such as ``optimizer.lr``."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    section, _, name = key.rpartition(".")
    setattr(get(config, section) if section else config, name, value)


def options(config: Any = None, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a configuration with the dataclass field that declares it."""
    found: dict[str, Any] = {}
    config = Config() if config is None else config
    for f in fields(config):
        if "help" in f.metadata:
            found[prefix + f.name] = f
        else:
            found.update(options(getattr(config, f.name), f"{prefix}{f.name}."))
    return found
