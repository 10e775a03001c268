"""Build video sources and clip datasets from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from loguru import logger

from sam2kit.config.schema import DATASET_TYPES, TOOL_TYPES, Config, DatasetConfig
from sam2kit.config.validation import check_dataset
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.detection import Layout, detect_layout
from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.problems import no_masks
from sam2kit.data.sources.base import FrameRange, SelectedVideos, VideoSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.components import ConnectedObjects
from sam2kit.data.sources.corrected import with_corrections
from sam2kit.data.sources.ctc import CTCDataset
from sam2kit.data.sources.cvat import CVATDataset
from sam2kit.data.sources.dicom import DicomDataset
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.images import ImageDataset
from sam2kit.data.sources.label_studio import LabelStudioDataset
from sam2kit.data.sources.labelme import LabelMeDataset
from sam2kit.data.sources.mixture import MixtureDataset
from sam2kit.data.sources.nifti import NiftiDataset
from sam2kit.data.sources.npz import NPZDataset
from sam2kit.data.sources.sav import SAVDataset
from sam2kit.data.sources.shapes import ShapeDataset
from sam2kit.data.sources.tiff import StackOptions, TiffDataset
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.sources.video_decoder import open_video
from sam2kit.data.sources.video_files import VideoFileDataset
from sam2kit.data.sources.yolo import YOLODataset
from sam2kit.data.splits import PARTS, TEST, TRAIN, VALIDATION, Splits, assign, drawn, read_splits
from sam2kit.data.synthetic.dataset import CompositedDataset, SyntheticDataset
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import unpack_hint
from sam2kit.utils.text import plural, visible_text

# Added to the seed of what is generated in the videos of a part, so that training never sees it.
SEED_OFFSETS = {TRAIN: 0, VALIDATION: 1_000_003, TEST: 2_000_006}
MIN_ANNOTATED = 2  # annotated frames in each part of a video: one to prompt, one to track
# Prepares the videos of a section for their use; the arguments are those of _prepare.
Prepare = Callable[[VideoSource, DatasetConfig, int, str], VideoSource]


def open_source(
    what: str | Path | Config | VideoSource, settings: DatasetConfig | None = None
) -> VideoSource:
    """Open a path, configuration or source as a video source, without generated objects.

    A source is returned unchanged. A configuration opens all videos of its ``dataset`` section,
    including those that a run would hold out for validation (:func:`build_validation_source` opens
    the validation videos). The layout of a path is detected
    (:func:`~sam2kit.data.detection.detect_layout`); if it is wrong, set
    ``dataset.type`` in a configuration instead.

    Args:
        what: path, configuration or source.
        settings: how a path is read: ``masks_path``, ``mask_values`` and the other keys of
            :data:`sam2kit.config.schema.SOURCE_KEYS`. None (default): the default configuration.

    Raises:
        DataError: the path does not exist or has no known layout; the message lists the layouts.
        ConfigError: a key is missing.
    """
    if isinstance(what, VideoSource):
        return what
    if isinstance(what, Config):
        return _open(resolve_layout(what.dataset), what.seed, "dataset")
    config = DatasetConfig() if settings is None else settings
    if config.type in ("auto", "mixture", "synthetic"):
        layout = detect_layout(what)
        has_masks = config.masks_path is not None or layout.masks_path is not None
        path = layout.data_path
        if layout.type == "files" and path is not None and path.is_file() and not has_masks:
            return open_video(path)
        config = _with_layout(config, layout)
    else:
        config = replace(config, data_path=str(what))
    # Unlike training, inspection shows all masklets.
    return _open_type(replace(config, sav_masklets="both"), 0, "dataset")


def resolve_layouts(config: Config) -> Config:
    """Replace ``type=auto`` of all sections by the detected type, with the paths it needs.

    ``valdataset`` and ``testdataset`` keep ``auto`` (even if inherited), so that the layout of
    other videos, passed to a later command, is detected separately.

    Returns:
        A changed copy, or the same object if nothing had to be detected.

    Raises:
        ConfigError, DataError: as :func:`resolve_layout`.
    """
    dataset = resolve_layout(config.dataset)
    if dataset is config.dataset:
        return config
    val, test = config.valdataset, config.testdataset
    if config.dataset.type == "auto":
        val = replace(val, type=val.type or "auto")
        test = replace(test, type=test.type or "auto")
    return replace(config, dataset=dataset, valdataset=val, testdataset=test)


def resolve_layout(config: DatasetConfig, section: str = "dataset") -> DatasetConfig:
    """Replace ``type=auto`` of a section, and of the sources of its mixture, by the detected type.

    Args:
        config: the section.
        section: its name in messages.

    Returns:
        A changed copy, or the same object if nothing had to be detected.

    Raises:
        ConfigError: no path is set, or a key does not fit the detected type.
        DataError: as :func:`~sam2kit.data.detection.detect_layout`.
    """
    if config.type == "mixture":
        parts = [
            (part, resolve_layout(part, f"{section}.mixture[{n}]"))
            for n, part in enumerate(config.parts())
        ]
        if all(resolved is part for part, resolved in parts):
            return config
        keys = ("type", "data_path", "masks_path", "annotation_file")
        entries = [
            entry | {k: getattr(resolved, k) for k in keys if getattr(resolved, k) is not None}
            for entry, (_, resolved) in zip(config.mixture, parts, strict=True)
        ]
        return replace(config, mixture=entries)
    if config.type != "auto":
        return config
    if config.annotation_file is not None:
        resolved = replace(config, type="coco")
    elif config.data_path is None:
        raise _no_path(config, section)
    else:
        _check_path(config.data_path, section, folder=False)
        layout = detect_layout(config.data_path)
        logger.info(
            "{}: {} ({}.type={}); set {}.type to read it differently",
            *(config.data_path, layout.reason, section, layout.type, section),
        )
        resolved = _with_layout(config, layout)
    check_dataset(resolved, section)
    return resolved


def _with_layout(config: DatasetConfig, layout: Layout) -> DatasetConfig:
    """Return a copy of a section that reads its data in the given layout.

    Keys that are set in the section take precedence over the paths of the layout.
    """

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return replace(
        config,
        type=layout.type,
        data_path=text(layout.data_path),
        masks_path=config.masks_path or text(layout.masks_path),
        annotation_file=config.annotation_file or text(layout.annotation_file),
    )


class DataSets(NamedTuple):
    """The videos of a configuration.

    Attributes:
        config: the configuration with the detected layout and the split by time.
        train, validation: the videos to train and to validate on.
        test: the videos of ``testdataset``; None if it names no videos.
    """

    config: Config
    train: VideoSource
    validation: VideoSource
    test: VideoSource | None


def build_datasets(config: Config) -> tuple[ClipDataset, ClipDataset]:
    """Build the training and the validation clips.

    If ``valdataset`` names no data, ``valdataset.fraction`` of the training videos are held out: at
    least one, chosen by the hash of its name. A single video is split by time
    (:func:`split_by_time`). Validation videos of type synthetic are generated from another seed
    instead. Test videos (``testdataset``) are in neither part. If only some videos have masks, the
    others are not used.

    Returns:
        Training clips, validation clips.

    Raises:
        ConfigError: a key is missing, or there is only one video and it cannot be split.
        DataError: a file or folder is missing, unreadable or inconsistent; or no video has masks,
            and ``dataset.synthetic_objects`` is 0.
    """
    return resolve_datasets(config)[1:]


def resolve_datasets(config: Config) -> tuple[Config, ClipDataset, ClipDataset]:
    """Build the clips of :func:`build_datasets`, and record the detected layout and the split.

    Returns:
        The configuration with the detected layout and the split by time, from which a later
        command builds the same clips; training clips; validation clips.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    sets = open_sets(config)
    return sets.config, *clips_of(sets)


def clips_of(sets: DataSets) -> tuple[ClipDataset, ClipDataset]:
    """Return the training and the validation clips of videos.

    The training clips include the generated ones that ``dataset.replay`` adds.
    """
    config = sets.config
    return (
        ClipDataset(sets.train, config.dataset, True, config.seed, config.augmentation),
        ClipDataset(sets.validation, config.validation_dataset(), training=False, seed=config.seed),
    )


def open_sets(config: Config, earlier: Splits | None = None) -> DataSets:
    """Open the training, validation and test videos of a configuration.

    Args:
        config: the configuration.
        earlier: the splits of an earlier run; its videos keep their part when videos are held out.
            If None (default), the splits of ``valdataset.splits``, if it is set.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    return _open_sets(resolve_layouts(config), False, earlier)


def _open_sets(config: Config, inspect: bool, earlier: Splits | None = None) -> DataSets:
    """Open the videos as :func:`open_sets` does.

    Args:
        config: the configuration, with detected layouts.
        inspect: keep videos as they are, instead of preparing them for training.
        earlier: as for :func:`open_sets`.
    """
    prepare = _as_stored if inspect else _prepare
    holder = _Holder(config, earlier, prepare)
    parts: dict[str, VideoSource | None]
    if holder.shares:
        dataset, parts = holder.split(config.dataset, "dataset")
        config = replace(config, dataset=dataset)
    else:
        opened = _open(config.dataset, config.seed, "dataset", prepare)
        parts = {TRAIN: prepare(opened, config.dataset, config.seed, "dataset")}
    train = parts[TRAIN]
    assert train is not None
    validation = parts.get(VALIDATION)
    if VALIDATION not in holder.shares:
        val_config = resolve_layout(config.validation_dataset(), "valdataset")
        validation = _open_section(config, val_config, "valdataset", prepare)
        _warn_of_shared_videos(train, config.dataset, validation, val_config)
    assert validation is not None
    test = parts.get(TEST)
    if config.has_test_data:
        test = _open_section(config, config.test_dataset(), "testdataset", prepare)
    return DataSets(config, train, validation, test)


def _open_section(
    config: Config, settings: DatasetConfig, section: str, prepare: Prepare | None = None
) -> VideoSource:
    """Open the videos that ``valdataset`` or ``testdataset`` names.

    Args:
        config: the whole configuration.
        settings: the section, with what it inherits.
        section: its name.
        prepare: applied to the videos. None (default): they are prepared for training.
    """
    prepare = prepare or _prepare
    settings = resolve_layout(settings, section)
    seed = config.seed + SEED_OFFSETS[TEST if section == "testdataset" else VALIDATION]
    return prepare(_open(settings, seed, section, prepare), settings, seed, section)


def sets_to_inspect(
    config: Config, what: str | Path | VideoSource | None = None
) -> dict[str, ClipDataset]:
    """Build datasets with one clip per video, chosen as in validation, for inspection.

    Videos are shown as they are: no objects are generated, and a clip of an unannotated video has
    no objects.

    Args:
        config: ``dataset`` gives the clip length and the image size.
        what: data to inspect instead of the videos of ``config``; see :func:`open_source`.
            None (default): the training and validation videos of ``config``.

    Returns:
        The datasets by name: ``train`` and ``validation``, or ``data`` if ``what`` is given.

    Raises:
        ConfigError, DataError: as :func:`build_datasets` and :func:`open_source`.
    """
    if what is None:
        config, train, val, _ = _open_sets(resolve_layouts(config), inspect=True)
        sets = {"train": (train, config.dataset), "validation": (val, config.validation_dataset())}
    else:
        sets = {"data": (open_source(what), replace(config.dataset, data_path=str(what)))}
    return {
        name: ClipDataset(*source_and_config, training=False, seed=config.seed, unannotated=True)
        for name, source_and_config in sets.items()
    }


def build_validation(config: Config) -> ClipDataset:
    """Build the validation clips of :func:`build_datasets` alone.

    The training data are opened only if the validation videos are held out of them.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    return ClipDataset(
        build_validation_source(config),
        config.validation_dataset(),
        training=False,
        seed=config.seed,
    )


def build_validation_source(config: Config, earlier: Splits | None = None) -> VideoSource:
    """Build the source of whole videos from which :func:`build_validation` takes its clips.

    Args:
        config: the configuration.
        earlier: as for :func:`open_sets`.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    if config.holds_out_validation:
        config = resolve_layouts(config)
        if _holds_out(config):
            return _open_sets(config, False, earlier).validation
    return _open_section(config, config.validation_dataset(), "valdataset")


def build_test_source(config: Config, earlier: Splits | None = None) -> VideoSource:
    """Build the source of the whole test videos (``testdataset``), which training never reads.

    Args:
        config: the configuration.
        earlier: as for :func:`open_sets`.

    Raises:
        ConfigError: ``testdataset`` names no videos; or as :func:`build_datasets`.
        DataError: as :func:`build_datasets`.
    """
    if config.has_test_data:
        return _open_section(config, config.test_dataset(), "testdataset")
    if config.testdataset.fraction and (test := open_sets(config, earlier).test) is not None:
        return test
    raise ConfigError(
        "no test videos are configured",
        key="testdataset.fraction",
        value=config.testdataset.fraction,
        hint="train with testdataset.fraction=0.2, or give testdataset.data_path or "
        "testdataset.split; for generated videos, set testdataset.type=synthetic",
    )


def _holds_out(config: Config) -> bool:
    """Return whether validation videos are held out of the training videos."""
    same_type = config.dataset.type == config.validation_dataset().type
    return config.holds_out_validation and same_type and config.dataset.type != "synthetic"


class _Holder:
    """Hold validation and test videos out of training videos.

    Args:
        config: the whole configuration.
        earlier: as for :func:`open_sets`.
        prepare: applied to each part.

    Attributes:
        shares: fraction to hold out by part; a part that is not held out is missing.
    """

    def __init__(self, config: Config, earlier: Splits | None, prepare: Prepare) -> None:
        self.config, self.prepare = config, prepare
        self.shares: dict[str, float] = {}
        if _holds_out(config):
            self.shares[VALIDATION] = config.valdataset.fraction
        if config.testdataset.fraction and not config.has_test_data:
            self.shares[TEST] = config.testdataset.fraction
        if earlier is None and self.shares and config.valdataset.splits is not None:
            earlier = read_splits(config.valdataset.splits)
        self.earlier = earlier

    def split(
        self, config: DatasetConfig, section: str
    ) -> tuple[DatasetConfig, dict[str, VideoSource | None]]:
        """Split the videos of a section; the sources of a mixture are split separately.

        Args:
            config: the section, or one source of its mixture.
            section: name of ``config`` in error messages.

        Returns:
            The section with the split by time, and the videos by part.
        """
        if config.type == "mixture":
            return self._split_mixture(config, section)
        seed = self.config.seed
        source = _open(config, seed, section)
        if config.type == "synthetic":
            return config, self._generated(config, source, section)
        if self.prepare is _prepare:
            source = _annotated_videos(source, config)
        config, parts = split_source(source, config, self.shares, section, self.earlier)
        return config, {
            part: videos and self.prepare(videos, config, self._seed(part), section)
            for part, videos in parts.items()
        }

    def _seed(self, part: str) -> int:
        return self.config.seed + SEED_OFFSETS[part]

    def _generated(
        self, config: DatasetConfig, train: VideoSource, section: str
    ) -> dict[str, VideoSource | None]:
        """Generate held-out videos from another seed."""
        parts: dict[str, VideoSource | None] = {TRAIN: train}
        if VALIDATION in self.shares:
            count = self.config.valdataset.synthetic_videos
            val_config = replace(config, synthetic_videos=count)
            parts[VALIDATION] = _open(val_config, self._seed(VALIDATION), section)
        return parts

    def _split_mixture(
        self, config: DatasetConfig, section: str
    ) -> tuple[DatasetConfig, dict[str, VideoSource | None]]:
        split = [
            self.split(part, f"{section}.mixture[{n}]") for n, part in enumerate(config.parts())
        ]
        names = [name for _, parts in split for s in parts.values() if s for name in s.names]
        # Decide over all parts, so that a video has the same name as in the mixture without a
        # split.
        has_duplicates = len(set(names)) < len(names)
        mixed: dict[str, VideoSource | None] = {}
        for part in PARTS:
            # A source without videos of this part, such as generated test videos, is left out.
            sources = {n: s for n, (_, parts) in enumerate(split) if (s := parts.get(part))}
            if not sources:
                continue
            weights = [_weights(config)[n] for n in sources]
            seed, numbers = self._seed(part), list(sources)
            mixture = MixtureDataset(list(sources.values()), weights, seed, has_duplicates, numbers)
            mixed[part] = _corrected(mixture, config)
        entries = [
            entry | ({"time_split": part.time_split} if part.time_split else {})
            for entry, (part, _) in zip(config.mixture, split, strict=True)
        ]
        return replace(config, mixture=entries), mixed


def split_source(
    source: VideoSource,
    config: DatasetConfig,
    shares: Mapping[str, float],
    section: str = "dataset",
    earlier: Splits | None = None,
) -> tuple[DatasetConfig, dict[str, VideoSource | None]]:
    """Split videos into parts; a single video is split by time.

    Args:
        source: the videos.
        config: ``time_split`` and the keys of :func:`choose_time_split` are read.
        shares: fraction to hold out for ``validation`` and ``test``; a missing part gets none.
        section: name of ``config`` in error messages.
        earlier: splits of an earlier run, whose videos keep their part. None (default): no earlier
            run.

    Returns:
        ``config`` with the split by time, and the videos by part; None for a part without videos.

    Raises:
        ConfigError: there are too few videos.
    """
    single = len(source) == 1 and (source.num_frames(0) > 1 or config.time_split)
    if single and list(shares) == [VALIDATION]:
        split = config.time_split or choose_time_split(source, shares[VALIDATION], config, section)
        train, val = split_by_time(source, split, section)
        return replace(config, time_split=split), {TRAIN: train, VALIDATION: val}
    needed = 1 + len(shares)
    if len(source) < needed:
        raise _too_few_videos(source, needed, section)
    if earlier is not None and earlier.seed is not None and VALIDATION in shares:
        parts = drawn(source.names, shares[VALIDATION], earlier.seed)
    else:
        known = {} if earlier is None else earlier.assigned(source)
        parts = assign(source.names, shares.get(VALIDATION, 0), shares.get(TEST, 0), known)
    indices = {part: [i for i, p in enumerate(parts) if p == part] for part in PARTS}
    if missing := [part for part in (TRAIN, *shares) if not indices[part]]:
        named = {VALIDATION: "valdataset", TEST: "testdataset"}.get(missing[0])
        naming = (
            f" name {missing[0]} videos in {named}.data_path or {named}.split," if named else ""
        )
        raise ConfigError(
            f"no video is left for {missing[0]}: an earlier run used all "
            f"{plural(len(source), 'video')} for other parts, such as {source.names[0]!r}",
            key=f"{section}.data_path",
            hint=f"add videos,{naming} or start from weights that were not trained on these videos",
        )
    return config, {
        part: SelectedVideos(source, chosen) if chosen else None for part, chosen in indices.items()
    }


def _too_few_videos(source: VideoSource, needed: int, section: str) -> ConfigError:
    """Make the error for a source with too few videos to hold some out."""
    if needed == 2:
        return ConfigError(
            f"only one video, {source.names[0]!r}, and none can be held out for validation",
            key=f"{section}.data_path",
            hint="name validation videos in valdataset.data_path or valdataset.split, or add a "
            "video",
        )
    return ConfigError(
        f"{plural(len(source), 'video')}, such as {source.names[0]!r}, but training, validation "
        "and test need one each",
        key=f"{section}.data_path",
        hint="add videos, set testdataset.fraction=0, or name test videos in testdataset.data_path",
    )


def choose_time_split(
    source: VideoSource, fraction: float, config: DatasetConfig, section: str = "dataset"
) -> list[int]:
    """Choose the training and the validation frames of a single video.

    The last ``fraction`` of the frames is used for validation. A gap of the span of a clip, up to a
    tenth of the video, precedes it, so that no validation frame is next to a training frame. If a
    part would have fewer than :data:`MIN_ANNOTATED` annotated frames, the last ``fraction`` of the
    annotated frames is used for validation instead.

    Args:
        source: one video.
        fraction: share of the frames to validate on, 0 to 1.
        config: ``video_clip_length`` and ``frame_stride`` give the span of a clip.
        section: name of the configuration section in error messages.

    Returns:
        Number of training frames, index of the first validation frame, number of frames.

    Raises:
        ConfigError: the video has too few frames or annotated frames to be split.
    """
    n = source.num_frames(0)
    annotated = list(source.annotated_frames(0)) if source.has_masks else list(range(n))
    if len(annotated) < 2 * MIN_ANNOTATED:
        raise ConfigError(
            f"only one video, {source.names[0]!r}, and its "
            f"{plural(len(annotated), 'annotated frame')} cannot be split into {MIN_ANNOTATED} to "
            f"train on and {MIN_ANNOTATED} to validate on",
            key=f"{section}.data_path",
            hint="annotate more frames, add a video, or give validation videos as "
            "valdataset.data_path",
        )
    first = n - min(max(round(n * fraction), 1), n - 1)
    in_val = sum(t >= first for t in annotated)
    if not MIN_ANNOTATED <= in_val <= len(annotated) - MIN_ANNOTATED:
        count = max(round(len(annotated) * fraction), MIN_ANNOTATED)
        first = annotated[-min(count, len(annotated) - MIN_ANNOTATED)]
    span = (config.video_clip_length - 1) * config.frame_stride + 1
    gap = min(span, n // 10)
    # The gap must not take the annotated frames that training needs.
    return [max(first - gap, annotated[MIN_ANNOTATED - 1] + 1), first, n]


def split_by_time(
    source: VideoSource, split: list[int], section: str = "dataset"
) -> tuple[VideoSource, VideoSource]:
    """Split a single video into its first frames, to train on, and its last ones, to validate on.

    Args:
        source: one video.
        split: number of training frames, index of the first validation frame, number of frames, as
            :func:`choose_time_split` returns them.
        section: name of the configuration section in error messages.

    Raises:
        DataError: the source is not the video of the split.
    """
    train_stop, val_start, count = split
    if len(source) != 1 or source.num_frames(0) < count:
        raise DataError(
            f"the split was made for one video of {plural(count, 'frame')}, but there are "
            f"{plural(len(source), 'video')}, the first with {source.num_frames(0)} frames",
            key=f"{section}.time_split",
            value=split,
            expected="null for other videos",
            hint=f"set {section}.time_split=null to split again, or give the same video",
        )
    logger.info(
        "Splitting {!r} by time: frames 0 to {} for training, {} to {} for validation",
        *(source.names[0], train_stop - 1, val_start, count - 1),
    )
    return FrameRange(source, 0, train_stop), FrameRange(source, val_start, count)


def _open(
    config: DatasetConfig, seed: int, section: str, prepare: Prepare | None = None
) -> VideoSource:
    """Build a source with object identities and corrections, but without generated objects.

    Args:
        config: the section, with a detected layout.
        seed: seed of everything that is generated.
        section: name of ``config`` in error messages.
        prepare: applied to each source of a mixture. None (default): they stay as they are.
    """
    source = _open_type(config, seed, section, prepare or _as_stored)
    # The sources of a mixture have applied their own identity setting already.
    has_stored_masks = config.type not in ("synthetic", "mixture") and source.has_masks
    if has_stored_masks and config.identity == "components":
        source = ConnectedObjects(source)
    return _corrected(source, config)


def _corrected(source: VideoSource, config: DatasetConfig) -> VideoSource:
    return source if config.corrections is None else with_corrections(source, config.corrections)


def _open_type(
    config: DatasetConfig, seed: int, section: str, prepare: Prepare | None = None
) -> VideoSource:
    """Build the source class that ``config.type`` selects; see :func:`_open`."""
    if config.type not in DATASET_TYPES:
        expected = f"one of {', '.join(DATASET_TYPES)}"
        raise ConfigError(
            key=f"{section}.type",
            value=config.type,
            expected=expected,
            hint="docs/data.md describes each layout",
        )
    if config.type == "synthetic":
        return SyntheticDataset.from_config(config, seed)
    if config.type == "mixture":
        prepare = prepare or _as_stored
        sources = []
        for n, part in enumerate(config.parts()):
            name = f"{section}.mixture[{n}]"
            sources.append(prepare(_open(part, seed, name), part, seed, name))
        return MixtureDataset(sources, _weights(config), seed)
    if config.type == "coco":
        return _open_coco(config, section)
    if config.data_path is None:
        raise _no_path(config, section)
    _check_path(config.data_path, section, folder=config.type in ("video", "images"))
    return _open_path(config, config.data_path)


def _open_path(config: DatasetConfig, path: str) -> VideoSource:
    """Build the source of a type that reads its videos from one path."""
    if config.type == "training_set":
        return TrainingSet(path, config.split)
    if config.type == "sav":
        return SAVDataset(path, config.split, config.sav_masklets)
    if config.type in TOOL_TYPES:
        return _open_export(config)
    if config.type in ("tiff", "ctc", "nifti", "dicom", "npz"):
        return _open_stacks(config, path)
    masks: dict[str, Any] = {
        "masks_path": config.masks_path,
        "mask_values": config.mask_values,
        "mask_colours": config.mask_colours,
    }
    if config.type == "files":
        return VideoFileDataset(path, config.split, **masks, strict=config.strict)
    source = {"video": VideoDataset, "images": ImageDataset}[config.type]
    return source(path, config.split, **masks, intensity=IntensityRule.from_config(config))


def _open_coco(config: DatasetConfig, section: str) -> VideoSource:
    """Open COCO JSON files."""
    if config.annotation_file is None:
        raise ConfigError(
            "not set, and type coco reads annotations from it",
            key=f"{section}.annotation_file",
            hint=f"give the COCO JSON as {section}.annotation_file=FILE",
        )
    if config.data_path is not None:
        _check_path(config.data_path, section, folder=True)
    return COCODataset(
        config.annotation_file,
        config.data_path,
        config.split,
        "category" if config.identity == "components" else config.identity,
        keyframes_only=config.keyframes_only,
        strict=config.strict,
        intensity=IntensityRule.from_config(config),
    )


def _open_export(config: DatasetConfig) -> VideoSource:
    """Open the export of an annotation tool."""
    source = _parse_export(config)
    source.scaler = VideoScaler(IntensityRule.from_config(config))
    return source


def _parse_export(config: DatasetConfig) -> ShapeDataset:
    """Build the source of an annotation tool."""
    assert config.data_path is not None
    identity = "category" if config.identity == "components" else config.identity
    root, split, strict = config.data_path, config.split, config.strict
    if config.type in ("cvat", "label_studio"):
        kind = CVATDataset if config.type == "cvat" else LabelStudioDataset
        file, keyframes_only = config.annotation_file, config.keyframes_only
        return kind(root, file, split, identity, keyframes_only, strict)
    if config.type == "labelme":
        return LabelMeDataset(root, split, identity, strict)
    return YOLODataset(root, split, identity, strict, config.yolo_columns)


def _open_stacks(config: DatasetConfig, root: str) -> VideoSource:
    """Build a source of stacks or volumes, whose values are scaled to 8 bits."""
    split, rule = config.split, IntensityRule.from_config(config)
    channels = None if config.stack_channels is None else tuple(config.stack_channels)
    options = StackOptions(config.stack_axes, channels, config.stack_z)
    if config.type == "tiff":
        return TiffDataset(root, split, config.masks_path, rule, options, config.strict)
    if config.type == "ctc":
        return CTCDataset(root, split, rule, options, config.ctc_truth, config.strict)
    kinds: dict[str, type[Any]] = {
        "nifti": NiftiDataset,
        "dicom": DicomDataset,
        "npz": NPZDataset,
    }
    axis, reverse = config.volume_axis, config.volume_reverse
    volumes: VideoSource = kinds[config.type](
        root, split, config.masks_path, rule, axis, reverse, config.strict
    )
    return volumes


def _no_path(config: DatasetConfig, section: str) -> ConfigError:
    """Make the error for a section without a path."""
    return ConfigError(
        f"not set, and type {config.type} reads videos from it",
        key=f"{section}.data_path",
        hint=f"give {section}.data_path=FOLDER, or dataset.type=synthetic for generated videos",
    )


def _weights(config: DatasetConfig) -> list[float]:
    return [float(entry.get("weight", 1)) for entry in config.mixture]


def _check_path(path: str, section: str, folder: bool) -> None:
    if (hint := unpack_hint(path)) and Path(path).is_file():
        raise DataError(f"{path} is an archive", key=f"{section}.data_path", value=path, hint=hint)
    if not (Path(path).is_dir() if folder else Path(path).exists()):
        problem = "is not a folder" if Path(path).exists() else "does not exist"
        raise DataError(
            f"{path} {problem}",
            key=f"{section}.data_path",
            value=path,
            hint="give the folder of your videos",
        )


def _as_stored(source: VideoSource, config: DatasetConfig, seed: int, section: str) -> VideoSource:
    """Keep videos as they are stored, to inspect them."""
    return source


def _prepare(source: VideoSource, config: DatasetConfig, seed: int, section: str) -> VideoSource:
    """Select the annotated videos or, if there are none, composite generated objects.

    Raises:
        DataError: no video has masks, and generated objects are not enabled.
    """
    source = _annotated_videos(source, config)
    if source.has_masks:
        return source
    if config.synthetic_objects:
        return _with_generated(source, config, seed)
    raise no_masks(f"{config.data_path or config.annotation_file}", section, source.remarks)


def _annotated_videos(source: VideoSource, config: DatasetConfig) -> VideoSource:
    """Select the videos with masks, or all videos if none has masks."""
    # In SA-V every video has a JSON file, which this check would read.
    if not source.has_masks or config.type in ("synthetic", "mixture", "sav"):
        return source
    selected = [i for i in range(len(source)) if next(source.annotated_frames(i), None) is not None]
    if not selected or len(selected) == len(source):
        return source
    missing = sorted(set(range(len(source))) - set(selected))
    logger.warning(
        "Skipping {} of {} videos without masks, such as {}",
        *(len(missing), len(source), visible_text(source.names[missing[0]])),
    )
    return SelectedVideos(source, selected)


def _with_generated(source: VideoSource, config: DatasetConfig, seed: int) -> VideoSource:
    """Composite generated objects onto the frames of a source without masks."""
    logger.info(
        "{} has no masks; compositing up to {} generated objects per video onto its frames",
        config.data_path,
        config.synthetic_objects,
    )
    return CompositedDataset(source, config.synthetic_objects, seed, config.synthetic_motion)


def _warn_of_shared_videos(
    train: VideoSource, train_config: DatasetConfig, val: VideoSource, val_config: DatasetConfig
) -> None:
    """Warn if training and validation read videos with the same name from the same path."""
    roots = [
        Path(c.data_path or c.annotation_file or "").resolve() for c in (train_config, val_config)
    ]
    # Equal names in different folders are common ("00000") and no sign of a shared video.
    shared = sorted(set(train.names) & set(val.names))
    if shared and roots[0] == roots[1]:
        logger.warning(
            "{} videos of {} are in both the training and the validation set, such as {}; "
            "validation scores will be too high",
            len(shared),
            roots[0],
            shared[0],
        )
