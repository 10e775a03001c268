"""Define the configuration schema and all defaults as dataclasses.

YAML files under ``configs/`` only contain differences from these defaults;
:mod:`sam2kit.config.loading` merges both. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any  # OmegaConf reads the annotations at run time, in Python 3.10 too

PROMPT_TYPES = ("mask", "box", "point")
NEGATIVE_KINDS = ("near", "border", "object", "anywhere")
SIZES = ("nano", "t", "s", "b+", "l")
# Aliases that model.size accepts.
SIZE_NAMES = {
    **{"tiny": "t", "small": "s", "base": "b+", "base+": "b+", "base_plus": "b+", "large": "l"},
    **{"sam2.1_hiera_tiny": "t", "sam2.1_hiera_small": "s", "sam2.1_hiera_large": "l"},
    "sam2.1_hiera_base_plus": "b+",
}
RANDOM = "random"  # value of model.checkpoint for random weights
NOISE_KINDS = ("shift", "scale", "dilate", "erode", "jitter")
MASK_VALUES = ("auto", "ids", "all_ids", "binary", "threshold", "colours")
DATASET_TYPES = (
    *("auto", "video", "coco", "sav", "files", "images"),
    *("tiff", "ctc", "nifti", "dicom", "npz"),
    *("cvat", "label_studio", "labelme", "yolo"),
    *("training_set", "synthetic", "mixture"),
)
MONITORS = ("auto", "val_loss", "val_iou", "val_jf")
TOOL_TYPES = ("cvat", "label_studio", "labelme", "yolo")  # formats of annotation tools
# Columns that may follow the polygon or box in YOLO rows.
YOLO_COLUMNS = ("auto", "none", "confidence", "track", "confidence_track")


RUN, PATH, MACHINE = "run", "path", "machine"
"""Scopes of a key: RUN defines the run itself, PATH locates files, MACHINE controls how this
machine is used. Checkpoints come from untrusted sources, so only their RUN keys are applied."""


def option(
    default: Any,
    help: str,
    scope: str = RUN,
    *,
    choices: Sequence[str] | None = None,
    **limits: float,
) -> Any:
    """Declare a configuration key.

    Choices and limits apply to the value, or to each item of a list or dictionary. None is valid if
    the type allows it. :func:`sam2kit.config.validation.check` enforces them.

    Args:
        default: default value; lists and dictionaries are copied for each configuration.
        help: one line of documentation, shown by ``--help`` and ``--create-config``.
        scope: :data:`RUN`, :data:`PATH` or :data:`MACHINE`.
        choices: allowed strings. If None (default), any value of the type is allowed.
        limits: bounds of a number: ``ge``, ``gt``, ``le`` or ``lt``. A number with limits must also
            be finite.
    """
    metadata = {"help": help, "scope": scope, "choices": choices, "limits": limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


non_negative = partial(option, ge=0)
positive_count = partial(option, ge=1)
ratio = partial(option, ge=0, le=1)

# Keys that control how stacks and volumes are converted to frames.
STACK_KEYS = (
    "intensity_window",
    "intensity_percentiles",
    "stack_axes",
    "stack_channels",
    "stack_z",
    "ctc_truth",
    "volume_axis",
    "volume_reverse",
)

# Keys that locate and read the videos. Only these may differ between the sources of a mixture: the
# other keys determine the shape of a batch, and a batch may contain clips of several sources.
SOURCE_KEYS = (
    "type",
    "data_path",
    "masks_path",
    "mask_values",
    "mask_colours",
    "annotation_file",
    "identity",
    "split",
    "time_split",
    "sav_masklets",
    "yolo_columns",
    *STACK_KEYS,
    "synthetic_objects",
    "synthetic_videos",
    "synthetic_motion",
    "synthetic_lifelike",
    "synthetic_photos",
)


@dataclass
class DatasetConfig:
    """Source, sampling and prompts of the training clips."""

    type: str = option(
        "auto",
        "data layout: auto (detected when the videos are opened), video (frame folders), coco "
        "(COCO JSON), sav (SA-V), files (video files), images (still images), tiff (microscopy "
        "stacks), ctc (Cell Tracking Challenge), nifti, dicom or npz (medical volumes), cvat, "
        "label_studio, labelme or yolo (exports of these annotation tools), training_set (written "
        "by sam2kit training-set or the annotator), synthetic (generated) or mixture (several "
        "sources); see docs/data.md",
        choices=DATASET_TYPES,
    )
    data_path: str | None = option(
        None,
        "directory of the videos; for type=coco, the directory that file_name is relative to",
        PATH,
    )
    masks_path: str | None = option(
        None,
        "location of the masks if they are not stored beside their frames: a directory with one "
        "subdirectory per video, or a COCO JSON file for type=files",
        PATH,
    )
    mask_values: str = option(
        "auto",
        "meaning of pixel values in mask files: ids (object IDs; 255 is void), all_ids (255 is an "
        "object, too), binary (one object: nonzero values), threshold (one object: values of at "
        "least 128; also reads JPEG), colours (each colour is an object) or auto (inferred from "
        "many masks, and logged)",
        choices=MASK_VALUES,
    )
    mask_colours: str | None = option(
        None,
        "colour table of colour masks: voc, cityscapes, a JSON file with entries such as "
        '"cell": [255, 0, 0], or a labelmap.txt from CVAT; null: none',
        PATH,
    )
    annotation_file: str | None = option(
        None,
        "COCO JSON file (type=coco), or the exported file if it is not in data_path (type=cvat or "
        "label_studio); a glob pattern such as labels/*.json reads several files",
        PATH,
    )
    identity: str = option(
        "auto",
        "what defines one object: track (track, instance or object IDs), category (both only for "
        "type=coco and annotation tools), components (each connected component of a mask, matched "
        "from frame to frame; any type) or auto (track if the file has IDs, otherwise category; "
        "for annotation tools see docs/data.md)",
        choices=("auto", "track", "category", "components"),
    )
    keyframes_only: bool = option(
        True,
        "ignore masks that an annotation file marks as interpolated, and use key frames only",
    )
    strict: bool = option(
        False,
        "raise an error for unusable annotations, missing frame files, and unreadable volumes, "
        "stacks and video files, instead of skipping them",
    )
    split: str | None = option(
        None, "list of video names: a text file, or a name under ImageSets such as 2016/train", PATH
    )
    time_split: list[int] | None = non_negative(
        None,
        "split of a single video by time: number of training frames, index of the first validation "
        "frame, number of frames; null: chosen from valdataset.fraction and stored with the run",
    )
    corrections: str | None = option(
        None,
        "corrections.jsonl written by the annotator; its masks replace those of the dataset",
        PATH,
    )
    sav_masklets: str = option(
        "manual", "SA-V masklets to use: manual, auto or both", choices=("manual", "auto", "both")
    )
    yolo_columns: str = option(
        "auto",
        "columns after the corners in rows of type=yolo: none, confidence, track (a track ID), "
        "confidence_track (both) or auto (inferred from all rows, and logged)",
        choices=YOLO_COLUMNS,
    )
    intensity_window: list[float] | None = option(
        None,
        "pixel values that are mapped to 0 and 255 in all videos, such as [-160, 240] for CT; "
        "null: intensity_percentiles, or the window stored in a DICOM file",
    )
    intensity_percentiles: list[float] = option(
        [0.1, 99.9],
        "percentiles of a video's pixel values that are mapped to 0 and 255, for frames of more "
        "than 8 bits",
        ge=0,
        le=100,
    )
    stack_axes: str | None = option(
        None,
        "axes of TIFF stacks: one letter of T, C, Z, Y, X and S (colour samples) per axis of the "
        "file, such as TCYX; null: read from the file's metadata",
    )
    stack_channels: list[int] | None = option(
        None,
        "channels of TIFF stacks to use, counted from 0: one is shown in grey, two or three as "
        "red, green and blue; null: all channels, up to three",
        ge=0,
    )
    stack_z: str | None = option(
        None,
        "projection along Z of TIFF stacks that also have a time axis: max, mean, or the index of "
        "a slice; null: such stacks are rejected",
    )
    ctc_truth: str = option(
        "auto",
        "masks of type=ctc: gold (01_GT/SEG), silver (01_ST/SEG), track (the markers in "
        "01_GT/TRA) or auto (gold if the frame has it, otherwise silver)",
        choices=("auto", "gold", "silver", "track"),
    )
    volume_axis: int | None = option(
        None,
        "axis of the stored array along which a volume is sliced into frames: 0, 1 or 2; null: 2 "
        "for NIfTI, 0 for NPZ",
        ge=0,
        le=2,
    )
    volume_reverse: bool = option(False, "play the slices of volumes from the last to the first")
    mixture: list[dict[str, Any]] = option(
        [],
        "sources of type=mixture: a list of entries with the keys type, data_path and so on, and "
        "weight (default 1), the relative number of clips per epoch",
        PATH,
    )
    video_clip_length: int = positive_count(5, "number of frames per clip", le=10_000)
    frame_stride: int = positive_count(1, "use every N-th frame of a video")
    max_gap: int = non_negative(
        0,
        "maximum number of frames (after frame_stride) to skip at random between two frames of a "
        "training clip",
    )
    max_annotation_gap: int = positive_count(
        100,
        "for sparsely annotated videos, maximum distance in frames between two annotated frames "
        "that a clip spans; its frames are then evenly spaced and frame_stride is ignored",
    )
    short_videos: str = option(
        "turn_back",
        "what to do with videos shorter than a clip: turn_back (play forwards and backwards) or "
        "error",
        choices=("turn_back", "error"),
    )
    clips_per_video: int = positive_count(
        1, "number of clips sampled per video and epoch", le=1_000_000
    )
    image_size: int = option(
        512,
        "side length in pixels to which frames are resized, ignoring the aspect ratio; a multiple "
        "of 32",
    )
    epoch_clips: int | None = positive_count(
        None,
        "number of clips per epoch, sampled from all videos in turn; null: clips_per_video times "
        "the number of videos (of all sources in a mixture)",
        le=100_000_000,
    )
    replay: float = option(
        0.0,
        "fraction of the training clips that are generated, as with type=synthetic, to reduce "
        "forgetting; they are added to the clips of your videos, whose number per epoch does not "
        "change",
        ge=0,
        lt=1,
    )
    batch_size: int = positive_count(1, "number of clips per batch", le=65_536)
    num_workers: int = non_negative(
        2,
        "number of DataLoader workers; 0 loads clips in the main process",
        MACHINE,
        le=1024,
    )
    loader_timeout: int = non_negative(
        900,
        "maximum number of seconds to wait for a batch from the DataLoader workers, after which "
        "training fails instead of hanging; 0 means no limit",
        MACHINE,
    )
    max_objects: int | None = positive_count(
        3, "maximum number of objects per clip; null means no limit"
    )
    min_objects: int = positive_count(
        1,
        "start training clips at a frame with at least N visible objects, if a few attempts find "
        "one",
    )
    synthetic_objects: int = non_negative(
        0,
        "maximum number of generated objects per video to composite onto videos without masks; 0: "
        "reject videos without masks; type=synthetic and replay use 3",
    )
    synthetic_videos: int = positive_count(
        # An epoch has one clip per video, and all names are kept in memory.
        256,
        "number of videos per epoch for type=synthetic",
        le=1_000_000,
    )
    synthetic_motion: float = non_negative(
        0.14, "mean displacement of a generated object per frame, as a fraction of its diameter"
    )
    synthetic_lifelike: float = ratio(
        0.0,
        "fraction of the generated videos (type=synthetic, replay) that resemble real footage: "
        "moving camera, blur, changing light, shadows, articulated limbs, objects that leave or "
        "are fully occluded and reappear, and speeds of up to twice the mean",
    )
    synthetic_photos: str | None = option(
        None,
        "directory of images from which lifelike videos take most of their textures; null: "
        "generate all textures",
        PATH,
    )
    augment: bool = option(
        False,
        "augment training clips (flip, crop, reverse, colour) with the strengths of the section "
        "augmentation",
    )
    prompt_types: list[str] = option(
        ["mask"],
        "prompt types, any of mask, box and point; one is sampled per object",
        choices=PROMPT_TYPES,
    )
    prompt_probabilities: list[float] | None = ratio(
        None, "probability of each entry of prompt_types; null: equal probabilities"
    )
    prompt_per_batch: bool = option(
        False, "use one prompt type for all objects of a batch, which is faster"
    )
    num_positive_points: int = positive_count(
        1, "number of positive clicks of a point prompt", le=1000
    )
    num_negative_points: int = non_negative(
        0, "number of negative clicks of a point prompt", le=1000
    )
    negative_kinds: list[str] = option(
        ["near"],
        "placement of negative clicks, sampled per click: near (around the object), border (just "
        "outside it), object (on another object if there is one, otherwise border) or anywhere",
        choices=NEGATIVE_KINDS,
    )
    include_center: bool = option(
        True, "place the first positive click at the centre of the object"
    )
    box_noise: float = non_negative(
        0.0,
        "maximum random shift of each side of a box prompt, as a fraction of the box size, limited "
        "to 20 pixels",
    )
    mask_noise: float = non_negative(
        0.0,
        "maximum random shift, dilation or erosion of mask prompts, as a fraction of the object "
        "size",
    )
    max_conditioning_frames: int = positive_count(
        1,
        "maximum number of prompted frames per object: the first frame in which it is visible, and "
        "random further frames",
    )
    correction_clicks: int = non_negative(
        0,
        "number of correction clicks per corrected frame, placed in the error region (box and "
        "point prompts only)",
    )
    max_correction_frames: int = positive_count(
        1,
        "maximum number of corrected frames per object: the prompted frames, and random further "
        "frames",
    )
    correction_from_truth: float = ratio(
        0.0,
        "probability that a correction click is sampled from the ground-truth object instead of "
        "the error region",
    )

    def parts(self) -> list[DatasetConfig]:
        """Return the configurations of a mixture's sources; for other types, only this one."""
        if self.type != "mixture":
            return [self]
        return [self.part(entry) for entry in self.mixture]

    def part(self, entry: dict[str, Any]) -> DatasetConfig:
        """Return one source of a mixture as a configuration.

        Args:
            entry: keys of the source; all other keys are inherited from this configuration.
        """
        source_values = {key: value for key, value in entry.items() if key != "weight"}
        return replace(
            self, **({"type": "auto", "mixture": [], "corrections": None} | source_values)
        )


@dataclass
class AugmentationConfig:
    """Strengths of the augmentations that dataset.augment enables; 0 disables an operation."""

    reverse: float = ratio(0.5, "probability of playing a clip backwards")
    flip: float = ratio(0.5, "probability of mirroring a clip horizontally")
    crop: float = option(
        0.3,
        "maximum fraction of the frame area to crop away; the rest is resized to the full frame",
        ge=0,
        le=0.9,
    )
    stretch: float = ratio(0.1, "maximum change of the aspect ratio of the crop, as a fraction")
    degrees: float = option(0.0, "maximum rotation in degrees, in either direction", ge=0, le=180)
    shear: float = option(0.0, "maximum shear in degrees, in either direction", ge=0, le=60)
    scale: float = option(0.0, "maximum change of scale, up or down, as a fraction", ge=0, le=0.9)
    translate: float = ratio(
        0.0, "maximum translation, as a fraction of the frame width and height"
    )
    brightness: float = ratio(
        0.2, "maximum relative change of brightness, the same on all frames of a clip"
    )
    contrast: float = ratio(
        0.2, "maximum relative change of contrast, the same on all frames of a clip"
    )
    saturation: float = ratio(
        0.2, "maximum relative change of saturation, the same on all frames of a clip"
    )
    grayscale: float = ratio(0.0, "probability of converting a clip to greyscale")
    frame_brightness: float = ratio(
        0.0, "maximum relative change of brightness per frame, in addition to brightness"
    )
    frame_contrast: float = ratio(
        0.0, "maximum relative change of contrast per frame, in addition to contrast"
    )
    frame_saturation: float = ratio(
        0.0, "maximum relative change of saturation per frame, in addition to saturation"
    )
    thermal: float = ratio(
        0.0, "probability of making a clip look as if filmed by a thermal camera (docs/clips.md)"
    )
    endoscopy: float = ratio(
        0.0,
        "probability of making a clip look as if filmed by an endoscope, unless the thermal effect "
        "is applied (docs/clips.md)",
    )


@dataclass
class ValDatasetConfig:
    """Source of the validation clips; null keys take their value from the section dataset."""

    type: str | None = option(None, "like dataset.type; null: same as dataset")
    data_path: str | None = option(None, "like dataset.data_path; null: same as dataset", PATH)
    masks_path: str | None = option(
        None,
        "like dataset.masks_path; null: same as dataset if type and data_path are null, too, "
        "otherwise none",
        PATH,
    )
    annotation_file: str | None = option(
        None, "like dataset.annotation_file; null: same as dataset", PATH
    )
    split: str | None = option(
        None, "like dataset.split, for the validation videos; null: same as dataset", PATH
    )
    fraction: float = option(
        0.2,
        "fraction of the training videos to hold out for validation if data_path, annotation_file "
        "and split are all null; selected by a hash of the video's name, independent of the seed",
        gt=0,
        lt=1,
    )
    splits: str | None = option(
        None,
        "splits.json or directory of an earlier run whose split to reuse; null: the run of "
        "model.checkpoint, if it is a run",
        PATH,
    )
    video_clip_length: int | None = option(None, "number of frames per clip; null: same as dataset")
    frame_stride: int | None = option(
        None, "use every N-th frame of a video; null: same as dataset"
    )
    batch_size: int = option(1, "number of clips per batch")
    max_objects: int | None = option(
        None, "maximum number of objects per clip; null means no limit"
    )
    synthetic_videos: int = option(16, "number of videos for type=synthetic", le=1_000_000)
    prompt_types: list[str] = option(["mask"], "like dataset.prompt_types")


@dataclass
class TestDatasetConfig:
    """Test videos, which training never uses; null keys take their value from dataset."""

    __test__ = False  # not a pytest class

    type: str | None = option(None, "like dataset.type; null: same as dataset")
    data_path: str | None = option(None, "like dataset.data_path; null: same as dataset", PATH)
    masks_path: str | None = option(None, "like valdataset.masks_path, for the test videos", PATH)
    annotation_file: str | None = option(
        None, "like dataset.annotation_file; null: same as dataset", PATH
    )
    split: str | None = option(
        None, "like dataset.split, for the test videos; null: same as dataset", PATH
    )
    fraction: float = option(
        0.0,
        "fraction of the training videos to hold out for testing if data_path, annotation_file and "
        "split are all null; 0: no test videos",
        ge=0,
        lt=1,
    )


@dataclass
class ModelConfig:
    """The SAM 2 model to build and the modules to train."""

    size: str = option(
        "t",
        "model size: t, s, b+ or l (SAM 2.1), or nano (a small model of this project)",
        choices=SIZES,
    )
    checkpoint: str | None = option(
        None,
        "initial weights: an official-format .pt file, a run directory, a .ckpt or adapter.pt "
        "file, a model name such as sam2.1_hiera_tiny, or random; null: the released weights of "
        "model.size",
        PATH,
    )
    trainable_modules: list[str] = option(
        ["memory_attention", "memory_encoder"],
        "names or glob patterns of the modules to train; '*' trains all modules "
        "(docs/architecture.md lists them)",
    )
    reset_modules: list[str] = option(
        [], "names or glob patterns of modules to reinitialise with random weights"
    )
    memory_attention_bias: float = option(
        0.0,
        "initial value of the rotary query and key biases of the memory cross-attention; 3 makes "
        "a randomly initialised model attend to the same position in the memory. Overridden by "
        "weights from a checkpoint",
    )
    object_score_bias: float = option(
        0.0,
        "initial bias of the object score; 3 prevents a randomly initialised model from "
        "suppressing all masks",
    )
    lora_modules: list[str] = option(
        [],
        "names or glob patterns of modules whose linear layers get LoRA: the layers are frozen "
        "and LoRA matrices are trained instead (requires the extra lora)",
    )
    lora_rank: int = positive_count(8, "rank of the LoRA matrices")
    lora_alpha: float = option(
        16.0, "LoRA scaling: the update is multiplied by lora_alpha / lora_rank", gt=0
    )
    lora_dropout: float = option(
        0.0, "dropout probability on the inputs of LoRA layers", ge=0, lt=1
    )
    detach_memory_every: int | None = positive_count(
        None,
        "stop the gradient through the memories every N frames; 1 leaves the memory encoder "
        "without gradient; null: never",
    )
    activation_checkpointing: bool = option(
        False,
        "recompute activations in the backward pass: same gradients with less memory",
    )
    objects_together: int | None = positive_count(
        None,
        "maximum number of objects per forward pass of the tracker; results are the same, and with "
        "activation_checkpointing less memory is needed; null means no limit",
    )
    memory_dropout: float | None = ratio(
        None,
        "dropout probability throughout the memory attention; 0 is faster and needs less memory; "
        "null: default of the model size (0.1, nano 0)",
    )
    attention_dropout: float | None = ratio(
        None, "dropout probability of the memory attention weights; null: same as memory_dropout"
    )
    compile: bool = option(
        False,
        "compile the image encoder and the memory attention with torch.compile for training: takes "
        "minutes at startup and pays off in runs of hours; on a CPU, requires a C++ compiler",
        MACHINE,
    )
    drop_path_rate: float = option(
        0.0, "stochastic depth rate of the image encoder trunk", ge=0, lt=1
    )


@dataclass
class LossConfig:
    """Weights of the terms of the training loss; 0 disables a term."""

    type: str = option(
        "frames",
        "frames: loss of the final output of each frame, averaged over frames; steps: loss of "
        "every decoder output, best of three masks, summed over frames as in the official SAM 2 "
        "training code",
        choices=("frames", "steps"),
    )
    focal: float = non_negative(0.0, "weight of the focal loss of the mask, averaged over pixels")
    bce: float = non_negative(
        1.0, "weight of the binary cross-entropy of the mask, averaged over pixels"
    )
    dice: float = non_negative(1.0, "weight of the soft Dice loss of the mask")
    iou: float = non_negative(0.5, "weight of the soft Jaccard (IoU) loss of the mask")
    temporal: float = non_negative(
        0.1,
        "weight of the difference between the predicted and the true change of a mask between "
        "consecutive frames",
    )
    iou_head: float = non_negative(
        0.0, "weight of the L1 loss between the predicted and the actual IoU"
    )
    object_score: float = non_negative(
        0.0,
        "weight of the cross-entropy of the object score, which predicts whether an object is "
        "visible",
    )
    bce_positive_weight: float = positive_count(
        1.0, "maximum weight of object pixels in the cross-entropy; 1 weights all pixels equally"
    )


@dataclass
class OptimizerConfig:
    """Settings of the AdamW optimizer."""

    name: str = option("adamw", "optimizer; only adamw is available", choices=("adamw",))
    lr: float = option(1e-4, "peak learning rate", gt=0)
    weight_decay: float = non_negative(
        0.01, "weight decay; not applied to biases, normalisation layers and single tokens"
    )
    betas: list[float] = option([0.9, 0.999], "the two betas of AdamW", ge=0, lt=1)
    module_lr: dict[str, float] = option(
        {},
        "peak learning rate per module name or glob pattern; the last match wins",
        gt=0,
    )
    module_weight_decay: dict[str, float] = non_negative(
        {}, "weight decay per module name or glob pattern; the last match wins"
    )
    layer_decay: float = option(
        1.0,
        "layer-wise learning rate decay: factor per trunk layer, from the last to the first",
        gt=0,
        le=1,
    )


@dataclass
class SchedulerConfig:
    """Learning rate schedule, updated every step: linear warm-up, then cosine or constant."""

    name: str = option(
        "cosine", "schedule after the warm-up: cosine or constant", choices=("cosine", "constant")
    )
    warmup_steps: int = non_negative(0, "number of steps of linear warm-up from 0")
    min_lr_ratio: float = ratio(
        0.1, "final learning rate of the cosine schedule, as a fraction of optimizer.lr"
    )


@dataclass
class TrainerConfig:
    """Settings of the training loop (Lightning's Trainer)."""

    max_epochs: int = positive_count(10, "maximum number of epochs")
    max_steps: int = option(-1, "maximum number of optimizer steps; -1 means no limit")
    max_time: str | None = option(
        None,
        "maximum training time as DD:HH:MM:SS; the learning rate schedule does not adapt to it; "
        "null means no limit",
    )
    accelerator: str = option(
        "auto",
        "hardware to use: cpu, gpu (or cuda), mps, or auto: a CUDA GPU if available, otherwise the "
        "CPU",
        MACHINE,
        choices=("auto", "cpu", "gpu", "cuda", "mps"),
    )
    devices: str = option(
        "1", "devices per node: a number, a list of indices such as 0,1, or auto", MACHINE
    )
    num_nodes: int = positive_count(
        1, "number of nodes, each with the same number of devices (docs/scale.md)", MACHINE
    )
    strategy: str = option(
        "auto",
        "ddp, or auto: ddp on several devices, none on a single one",
        MACHINE,
        choices=("auto", "ddp"),
    )
    precision: str = option(
        "auto",
        "32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed on a GPU that supports it, otherwise "
        "32-true",
        MACHINE,
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
    )
    gradient_clip_val: float | None = option(1.0, "maximum gradient norm; null: no clipping", gt=0)
    accumulate_grad_batches: int = positive_count(1, "number of batches per optimizer step")
    log_every_n_steps: int = positive_count(10, "log every N optimizer steps")
    check_val_every_n_epoch: int = positive_count(1, "validate every N epochs")
    limit_train_batches: int | None = positive_count(
        None, "maximum number of training batches per epoch; null means no limit"
    )
    limit_val_batches: int | None = positive_count(
        None, "maximum number of validation batches; null means no limit"
    )
    monitor: str = option(
        "auto",
        "metric for best.ckpt and early stopping: val_loss (lowest validation loss), val_iou "
        "(highest mean IoU of the tracked frames of validation clips), val_jf (highest J&F of "
        "whole validation videos, tracked as by sam2kit evaluate), or auto: val_loss for random "
        "initial weights or validation clips of one frame, otherwise val_iou",
        choices=MONITORS,
    )
    jf_videos: int | None = positive_count(
        8, "maximum number of validation videos for val_jf; null means no limit"
    )
    jf_frames: int | None = option(
        50, "maximum number of frames per video for val_jf, from the first; null: no limit", ge=2
    )
    early_stopping_patience: int | None = positive_count(
        None, "stop after N validations without improvement of monitor; null: never"
    )
    ema_decay: float | None = option(
        None,
        "decay per step of an exponential moving average of the weights, such as 0.995; the "
        "average is validated and saved instead of the weights; null: no average",
        gt=0,
        lt=1,
    )
    average_with_start: float | None = option(
        None,
        "share of the starting weights in an average with the trained weights, which is then "
        "validated and saved: the model changes less and forgets less; null: the trained weights",
        gt=0,
        lt=1,
    )
    audit: str = option(
        "stop",
        "action before the first step if a trainable module gets no gradient: stop, warn or off "
        "(no check)",
        choices=("stop", "warn", "off"),
    )
    logger: str = option(
        "tensorboard",
        "experiment logger: tensorboard, wandb or swanlab",
        MACHINE,
        choices=("tensorboard", "wandb", "swanlab"),
    )
    checkpoint_minutes: float | None = non_negative(
        10.0,
        "also save last.ckpt every N minutes within an epoch, in case the run is killed; null: "
        "never",
        MACHINE,
    )
    checkpoint_steps: int | None = positive_count(
        None,
        "also save last.ckpt every N steps within an epoch; null: never",
        MACHINE,
    )
    keep_checkpoints: int = non_negative(
        0, "number of earlier versions of last.ckpt to keep, as step-N.ckpt", MACHINE
    )
    resume_from: str | None = option(None, "last.ckpt of the run to resume", MACHINE)


@dataclass
class FeaturesConfig:
    """On-disk cache of features from the frozen image encoder (docs/speed.md)."""

    cache: str = option(
        "auto",
        "auto: cache features if the encoder is frozen and frames repeat unchanged; on: like auto, "
        "but raise an error if features cannot be cached; off: always run the encoder",
        MACHINE,
        choices=("auto", "on", "off"),
    )
    folder: str | None = option(
        None,
        "directory for cached features only; null: the subdirectory features of $SAM2KIT_CACHE "
        "(default ~/.cache/sam2kit)",
        MACHINE,
    )
    budget_gb: float = non_negative(
        50.0,
        "maximum size of the cache directory in gigabytes; a full cache is not extended",
        MACHINE,
    )
    dtype: str = option(
        "exact",
        "exact: store features as computed; bfloat16: round features for training to halve the "
        "disk space",
        MACHINE,
        choices=("exact", "bfloat16"),
    )


@dataclass
class EvaluationConfig:
    """Prompts, tracking and scoring of whole videos (docs/evaluation.md)."""

    protocol: str = option(
        "mask",
        "prompt of each object on the first frame in which it is visible: mask, box or clicks",
        choices=("mask", "box", "clicks"),
    )
    clicks: int = positive_count(
        1,
        "number of clicks per prompted frame for protocol=clicks: the centre of the object first, "
        "then the deepest point of the error region",
    )
    reprompt_every: int | None = positive_count(
        None,
        "prompt an object again on its first visible frame at least N frames after its last "
        "prompt; null: never",
    )
    noise: float = ratio(0.0, "maximum error of the prompts, as a fraction of the object size")
    noise_kinds: list[str] = option(
        list(NOISE_KINDS),
        "kinds of prompt noise, any of shift, scale, dilate, erode, jitter; each prompt uses "
        "those that apply to its type",
        choices=NOISE_KINDS,
    )
    noise_levels: list[float] = ratio(
        [], "additional values of noise to evaluate with, for robustness curves"
    )
    convention: str | None = option(
        None,
        "scoring convention (which frames count, and how): prompted, davis2016, davis2017, sav or "
        "all_frames; null: prompted, or the dataset's convention when scoring existing predictions",
        choices=("prompted", "davis2016", "davis2017", "sav", "all_frames"),
    )
    split: str = option(
        "validation",
        "videos to score: validation (valdataset) or test (testdataset)",
        choices=("validation", "test"),
    )
    allow_training_videos: bool = option(
        False,
        "allow scoring of videos that the checkpoint or its initial weights were trained on; the "
        "report's title says so",
    )
    max_frames: int | None = option(
        None, "maximum number of frames to score per video, from the first; null: no limit", ge=2
    )
    pictures: bool = option(
        True, "write images and videos of the masks, also in the report; turn off to save time"
    )
    compare: dict[str, str] = option(
        {},
        "additional models to evaluate on the same prompts: display name to checkpoint or model "
        "name",
        PATH,
    )
    calibration_videos: int = non_negative(
        0,
        "number of training videos for tuning thresholds; the tuned model is reported as an "
        "additional tracker; 0: no tuning",
    )
    tracker: dict[str, Any] = option(
        {}, "changes to the tracking options of the official SAM 2 predictor (docs/tracking.md)"
    )


@dataclass
class Config:
    """The complete configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    valdataset: ValDatasetConfig = field(default_factory=ValDatasetConfig)
    testdataset: TestDatasetConfig = field(default_factory=TestDatasetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    recipe: str = option(
        "memory",
        "name of the recipe that this configuration is based on: memory or official",
        choices=("memory", "official"),
    )
    seed: int = option(
        42, "random seed for weights, sampling, augmentation and prompts", ge=0, le=2**32 - 1
    )
    use_wandb: bool = option(False, "log to Weights & Biases, overriding trainer.logger", MACHINE)
    output_dir: str = option("outputs", "parent directory of the dated run directories", MACHINE)
    log_level: str = option(
        "INFO",
        "minimum level of log messages: DEBUG, INFO, WARNING or ERROR",
        MACHINE,
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    debug: bool = option(False, "mark this as a debug run; set by --debug")

    @property
    def logger(self) -> str:
        """Name of the active logger; ``use_wandb`` overrides ``trainer.logger``."""
        return "wandb" if self.use_wandb else self.trainer.logger

    @property
    def holds_out_validation(self) -> bool:
        """Whether validation videos are held out of the training videos."""
        val = self.valdataset
        return val.data_path is None and val.annotation_file is None and val.split is None

    @property
    def has_test_data(self) -> bool:
        """Whether ``testdataset`` selects any videos."""
        test = self.testdataset
        paths = (test.data_path, test.annotation_file, test.split)
        return any(path is not None for path in paths) or test.type == "synthetic"

    def test_dataset(self) -> DatasetConfig:
        """Return ``testdataset`` as a :class:`DatasetConfig`, with nulls taken from ``dataset``."""
        keys = {f.name: getattr(self.testdataset, f.name) for f in fields(TestDatasetConfig)}
        return replace(self, valdataset=replace(self.valdataset, **keys)).validation_dataset()

    def validation_dataset(self) -> DatasetConfig:
        """Return ``valdataset`` as a :class:`DatasetConfig`, with nulls taken from ``dataset``."""
        val_values = {
            f.name: getattr(self.valdataset, f.name)
            for f in fields(ValDatasetConfig)
            if f.name not in ("fraction", "splits")
        }
        own_paths = (
            self.valdataset.data_path is not None,
            self.valdataset.annotation_file is not None,
        )
        # "auto" detects the type of separate validation videos; otherwise dataset.type applies.
        if self.valdataset.type == "auto" and not any(own_paths):
            val_values["type"] = None
        # Generated videos have no path, so videos at a path are of another type.
        if self.valdataset.type is None and self.dataset.type == "synthetic" and any(own_paths):
            val_values["type"] = "auto"
        # dataset.masks_path belongs to the training videos. If the validation videos are stored
        # elsewhere, a null masks_path means that there is no such directory. A null max_objects
        # always means no limit.
        other_videos = val_values["type"] is not None or own_paths[0]
        keep_null = ["max_objects", *(["masks_path"] if other_videos else [])]
        if (val_values["type"] or self.dataset.type) == "auto" and own_paths[0]:
            keep_null.append("annotation_file")
        val_values = {k: v for k, v in val_values.items() if v is not None or k in keep_null}
        # Validation is deterministic: one clip per video, without noise or augmentation.
        return replace(
            self.dataset,
            **val_values,
            clips_per_video=1,
            max_gap=0,
            min_objects=1,
            augment=False,
            replay=0.0,
            prompt_probabilities=None,
            box_noise=0.0,
            mask_noise=0.0,
            max_conditioning_frames=1,
            correction_clicks=0,
        )


def get(config: Config, key: str) -> Any:
    """Return the value of a dotted key such as ``optimizer.lr``."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def put(config: Config, key: str, value: Any) -> None:
    """Set the value of a dotted key such as ``optimizer.lr``."""
    section, _, name = key.rpartition(".")
    setattr(get(config, section) if section else config, name, value)


def options(config: Any = None, prefix: str = "") -> dict[str, Any]:
    """Map every dotted key of a configuration to the dataclass field that declares it.

    Args:
        config: a configuration or a section. If None (default), the whole configuration.
        prefix: prepended to the keys, such as ``dataset.``.
    """
    declared: dict[str, Any] = {}
    config = Config() if config is None else config
    for f in fields(config):
        if "help" in f.metadata:
            declared[prefix + f.name] = f
        else:
            declared.update(options(getattr(config, f.name), f"{prefix}{f.name}."))
    return declared
