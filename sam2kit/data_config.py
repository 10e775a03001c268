"""The part of the configuration that is about data: where videos come from, how clips are drawn.

:mod:`sam2kit.config` is the whole of it, and gives these names too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any  # OmegaConf reads the annotations at run time, in Python 3.10 too

PROMPT_TYPES = ("mask", "box", "point")
NEGATIVE_KINDS = ("near", "border", "object", "anywhere")
SHORT_VIDEOS = ("turn_back", "error")
DATASET_TYPES = ("video", "coco", "sav", "files", "images", "synthetic", "mixture")
IDENTITIES = ("auto", "track", "category", "components")
SAV_MASKLETS = ("manual", "auto", "both")


RUN, PATH, MACHINE = "run", "path", "machine"
"""Who decides a key: what a run is (its checkpoint says so too), where files are, or how this
machine is used. Of a checkpoint the keys of RUN alone are obeyed: it may be a stranger's file."""


def option(default: Any, help: str, scope: str = RUN) -> Any:
    """Declare a configuration key.

    Args:
        default: a value; a list or dictionary is copied for each configuration.
        help: the line that documents it (``--create-config`` writes it out).
        scope: :data:`RUN`, :data:`PATH` or :data:`MACHINE`.
    """
    metadata = {"help": help, "scope": scope}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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
    sav_masklets: str = option("manual", "which masklets of SA-V: manual, auto or both")
    mixture: list[dict[str, Any]] = option(
        [],
        "the sources of type mixture: each type, data_path and so on, and weight (1), its share of "
        "the clips in an epoch",
        PATH,
    )
    video_clip_length: int = option(5, "frames in a clip, at least 1")
    frame_stride: int = option(1, "take every n-th frame")
    max_gap: int = option(
        0, "between two frames of a training clip leave out up to so many more (of every n-th)"
    )
    short_videos: str = option(
        "turn_back",
        "videos shorter than a clip: turn_back (played forwards and backwards) or error",
    )
    clips_per_video: int = option(1, "clips drawn from each video in an epoch")
    image_size: int = option(512, "frames are squashed to this square; a multiple of 32")
    batch_size: int = option(1, "clips in a batch")
    num_workers: int = option(2, "processes that load clips; 0 loads in the main process", MACHINE)
    max_objects: int | None = option(3, "at most this many objects a clip; null: all")
    min_objects: int = option(
        1, "begin training clips where so many objects are visible, if such a frame is soon found"
    )
    synthetic_objects: int = option(
        3, "at most this many generated objects a clip, for videos without masks and type synthetic"
    )
    synthetic_videos: int = option(256, "videos in an epoch of type synthetic")
    synthetic_motion: float = option(
        0.14, "mean way of a generated object on one frame as a share of its diameter"
    )
    synthetic_lifelike: float = option(
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
    prompt_types: list[str] = option(["mask"], "any of mask, box, point; each object draws one")
    prompt_probabilities: list[float] | None = option(
        None, "one probability for each of prompt_types; null: equal"
    )
    prompt_per_batch: bool = option(
        False, "all objects of a batch draw the same of prompt_types, which trains faster"
    )
    num_positive_points: int = option(1, "positive clicks of a point prompt")
    num_negative_points: int = option(0, "negative clicks of a point prompt")
    negative_kinds: list[str] = option(
        ["near"],
        "where negative clicks fall, each click draws one: near (around the object), border (just "
        "outside it), object (on another object of the clip, else border) or anywhere",
    )
    include_center: bool = option(True, "the first positive click is the object's centre")
    box_noise: float = option(
        0.0, "move a box's sides at random by up to this share of its size, and up to 20 pixels"
    )
    mask_noise: float = option(
        0.0, "move, grow or shrink masks of prompts by up to this share of the object's size"
    )
    max_conditioning_frames: int = option(
        1, "prompt each object on 1 to this many frames: the first it is visible on, and others"
    )
    correction_clicks: int = option(
        0, "clicks on each corrected frame, where the prediction is wrong (box and point prompts)"
    )
    max_correction_frames: int = option(
        1, "correct the prompted frames and others, up to this many frames an object"
    )
    correction_from_truth: float = option(
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

    reverse: float = option(0.5, "probability that a clip is played backwards")
    flip: float = option(0.5, "probability that it is mirrored left to right")
    crop: float = option(0.3, "cut away up to this share of the frame's area; blow up the rest")
    stretch: float = option(0.1, "the cut part is up to this share wider or higher than the frame")
    degrees: float = option(0.0, "turn by up to so many degrees, either way")
    shear: float = option(0.0, "slant by up to so many degrees, either way")
    scale: float = option(0.0, "shrink or enlarge by up to this share")
    translate: float = option(0.0, "move by up to this share of the frame's width and height")
    brightness: float = option(0.2, "change brightness by up to this share, alike on all frames")
    contrast: float = option(0.2, "as brightness, of the contrast")
    saturation: float = option(0.2, "as brightness, of the saturation")
    grayscale: float = option(0.0, "probability that a clip loses its colours")
    frame_brightness: float = option(0.0, "as brightness, on top of it, each frame by itself")
    frame_contrast: float = option(0.0, "as frame_brightness, of the contrast")
    frame_saturation: float = option(0.0, "as frame_brightness, of the saturation")


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
    )
    video_clip_length: int | None = option(None, "frames in a clip; null: as dataset")
    frame_stride: int | None = option(None, "null: as dataset")
    batch_size: int = option(1, "clips in a batch")
    max_objects: int | None = option(None, "at most this many objects a clip; null: all")
    synthetic_videos: int = option(16, "videos of type synthetic")
    prompt_types: list[str] = option(["mask"], "as dataset.prompt_types")
