"""Build video sources and clip data sets from the configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from loguru import logger

from sam2kit.config.schema import DATASET_TYPES, Config, DatasetConfig
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.detection import Layout, detect_layout
from sam2kit.data.sources.base import SelectedVideos, VideoSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.components import ConnectedObjects
from sam2kit.data.sources.corrected import with_corrections
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.images import ImageDataset
from sam2kit.data.sources.listing import FRAME_ENDINGS, list_folder
from sam2kit.data.sources.mixture import MixtureDataset
from sam2kit.data.sources.sav import SAVDataset
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.sources.video_decoder import open_video
from sam2kit.data.sources.video_files import VideoFileDataset
from sam2kit.data.synthetic.dataset import CompositedDataset, SyntheticDataset
from sam2kit.utils.errors import ConfigError, DataError

# Added to the seed of generated validation videos, so that training never sees one of them.
VALIDATION_SEED_OFFSET = 1_000_003


def build_source(config: DatasetConfig, seed: int, section: str = "dataset") -> VideoSource:
    """Build the source of type ``config.type``.

    Videos without masks get generated objects, composited onto their frames.

    Args:
        config: the keys of :data:`sam2kit.config.schema.SOURCE_KEYS` and ``mixture`` are read.
        seed: seed of everything that is generated, 0 or more.
        section: name of the configuration section in error messages: ``dataset`` or ``valdataset``.

    Raises:
        ConfigError: a key is missing.
        DataError: a file or folder is missing, unreadable or inconsistent.
    """
    return _with_objects(_open(config, seed, section), config, seed)


def open_source(what: str | Path | Config | VideoSource) -> VideoSource:
    """Open a path, configuration or source as a video source.

    A source is returned unchanged. A configuration opens all videos of its ``dataset`` section,
    including those that a run would hold out for validation (:func:`build_validation_source` opens
    the validation videos). The layout of a path is detected
    (:func:`~sam2kit.data.detection.detect_layout`); if the result is not the intended one, set
    ``dataset.type`` in a configuration instead.

    Args:
        what: path, configuration or source.

    Raises:
        DataError: the path does not exist or has none of these layouts; the message lists them.
        ConfigError: as :func:`build_source`.
    """
    if isinstance(what, VideoSource):
        return what
    if isinstance(what, Config):
        return build_source(what.dataset, what.seed)
    layout = detect_layout(what)
    if layout.type == "files" and layout.data_path is not None and layout.data_path.is_file():
        return open_video(layout.data_path)
    # Unlike a run, a look at the data shows all masklets.
    return _open_type(
        _with_layout(DatasetConfig(sav_masklets="both"), layout), seed=0, section="dataset"
    )


def _with_layout(config: DatasetConfig, layout: Layout) -> DatasetConfig:
    """Return a copy of a section that reads its data as a layout says."""
    paths = {
        key: None if path is None else str(path)
        for key in ("data_path", "masks_path", "annotation_file")
        for path in [getattr(layout, key)]
    }
    return replace(config, type=layout.type, **paths)


def build_datasets(config: Config) -> tuple[ClipDataset, ClipDataset]:
    """Build the training and the validation clips.

    If ``valdataset`` names no data, ``valdataset.fraction`` of the training videos are held out: at
    least one, chosen with ``config.seed``. Validation videos of type synthetic are generated from
    another seed instead.

    Returns:
        Training clips, validation clips.

    Raises:
        ConfigError: a key is missing, or there is only one video, so that none can be held out.
        DataError: a file or folder is missing, unreadable or inconsistent.
    """
    train_config, val_config = config.dataset, config.validation_dataset()
    if _holds_out(config):
        train, val = _split_source(train_config, config, "dataset")
    else:
        train = _open(train_config, config.seed, "dataset")
        val = _open(val_config, config.seed + VALIDATION_SEED_OFFSET, "valdataset")
        _warn_of_shared_videos(train, train_config, val, val_config)
        train = _with_objects(train, train_config, config.seed)
        val = _with_objects(val, val_config, config.seed + VALIDATION_SEED_OFFSET)
    return (
        ClipDataset(train, train_config, True, config.seed, config.augmentation),
        ClipDataset(val, val_config, training=False, seed=config.seed),
    )


def sets_to_inspect(
    config: Config, what: str | Path | VideoSource | None = None
) -> dict[str, ClipDataset]:
    """Build data sets with one clip per video, chosen as in validation, for inspection.

    Args:
        config: ``dataset`` gives the clip length and the image size.
        what: data to inspect instead of the videos of ``config``; see :func:`open_source`.
            None (default): the training and validation videos of ``config``.

    Returns:
        The data sets by name: ``train`` and ``validation``, or ``data`` if ``what`` is given.

    Raises:
        ConfigError, DataError: as :func:`build_datasets` and :func:`open_source`.
    """
    if what is None:
        train, val = build_datasets(config)
        sets = {"train": (train.source, train.config), "validation": (val.source, val.config)}
    else:
        data_config = replace(config.dataset, data_path=str(what))
        source = _with_objects(open_source(what), data_config, config.seed)
        sets = {"data": (source, data_config)}
    return {
        name: ClipDataset(*source_and_config, training=False, seed=config.seed)
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


def build_validation_source(config: Config) -> VideoSource:
    """Build the source of whole videos from which :func:`build_validation` takes its clips.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    if _holds_out(config):
        return build_datasets(config)[1].source
    seed = config.seed + VALIDATION_SEED_OFFSET
    val_config = config.validation_dataset()
    return _with_objects(_open(val_config, seed, "valdataset"), val_config, seed)


def _holds_out(config: Config) -> bool:
    """Return whether validation videos are held out of the training videos."""
    same_type = config.dataset.type == config.validation_dataset().type
    return config.holds_out_validation and same_type and config.dataset.type != "synthetic"


def _split_source(
    config: DatasetConfig, run_config: Config, section: str
) -> tuple[VideoSource, VideoSource]:
    """Split the videos of a section into training and held-out videos.

    Each source of a mixture is split by itself. Videos without masks get generated objects.

    Args:
        config: the section, or one source of its mixture.
        run_config: the whole configuration, for the seed and the ``valdataset`` section.
        section: name of ``config`` in error messages.
    """
    seed, val_seed = run_config.seed, run_config.seed + VALIDATION_SEED_OFFSET
    if config.type == "mixture":
        parts = [
            _split_source(part, run_config, f"{section}.mixture[{n}]")
            for n, part in enumerate(config.parts())
        ]
        names = [name for pair in parts for source in pair for name in source.names]
        # Decided over both halves, so that a video is named as in the mixture without a split.
        has_duplicates = len(set(names)) < len(names)
        mixed_train, mixed_val = (
            MixtureDataset(
                [pair[k] for pair in parts], _weights(config), mixture_seed, numbered=has_duplicates
            )
            for k, mixture_seed in enumerate((seed, val_seed))
        )
        return _corrected(mixed_train, config), _corrected(mixed_val, config)
    train = _open(config, seed, section)
    if config.type == "synthetic":
        config = replace(config, synthetic_videos=run_config.valdataset.synthetic_videos)
        return train, _open(config, val_seed, section)
    train, val = hold_out(train, run_config.valdataset.fraction, seed, section)
    return _with_objects(train, config, seed), _with_objects(val, config, val_seed)


def hold_out(
    source: VideoSource, fraction: float, seed: int, section: str = "dataset"
) -> tuple[VideoSource, VideoSource]:
    """Hold out a fraction of the videos of a source for validation.

    Both parts get at least one video and keep the order of the source. Which videos are held out
    depends only on the seed and the video names.

    Args:
        source: at least two videos.
        fraction: share of the videos to hold out, 0 to 1.
        seed: 0 or more.
        section: name of the configuration section in error messages.

    Returns:
        The videos to train on, the videos held out.

    Raises:
        ConfigError: there is only one video.
    """
    n = len(source)
    if n < 2:
        raise ConfigError(
            f"only one video, {source.names[0]!r}, and none can be held out for validation",
            key=f"{section}.data_path",
            hint="name validation videos in valdataset.data_path or valdataset.split, or add a "
            "video",
        )
    # Sorted by name, so that the order in which a source lists its videos does not matter.
    by_name = sorted(range(n), key=lambda i: source.names[i])
    shuffled = np.random.default_rng((seed, 0)).permutation(n)
    count = min(max(round(n * fraction), 1), n - 1)
    held_out = {by_name[k] for k in shuffled[:count].tolist()}
    return (
        SelectedVideos(source, [i for i in range(n) if i not in held_out]),
        SelectedVideos(source, sorted(held_out)),
    )


def _open(config: DatasetConfig, seed: int, section: str) -> VideoSource:
    """Build a source with object identities and corrections, but without generated objects."""
    source = _open_type(config, seed, section)
    # The sources of a mixture have applied their own identity setting already.
    has_stored_masks = config.type not in ("synthetic", "mixture") and source.has_masks
    if has_stored_masks and config.identity == "components":
        source = ConnectedObjects(source)
    return _corrected(source, config)


def _corrected(source: VideoSource, config: DatasetConfig) -> VideoSource:
    return source if config.corrections is None else with_corrections(source, config.corrections)


def _open_type(config: DatasetConfig, seed: int, section: str) -> VideoSource:
    """Build the source class that ``config.type`` selects."""
    if config.type not in DATASET_TYPES:
        expected = f"one of {', '.join(DATASET_TYPES)}"
        raise ConfigError(
            key=f"{section}.type",
            value=config.type,
            expected=expected,
            hint="docs/data.md describes each layout",
        )
    if config.type == "synthetic":
        return SyntheticDataset(
            config.synthetic_videos,
            (config.video_clip_length - 1) * config.frame_stride + 1,
            config.image_size,
            config.synthetic_objects,
            seed,
            config.synthetic_motion,
            lifelike=config.synthetic_lifelike,
            photos=config.synthetic_photos,
        )
    if config.type == "mixture":
        parts = [
            _with_objects(_open(part, seed, f"{section}.mixture[{n}]"), part, seed)
            for n, part in enumerate(config.parts())
        ]
        return MixtureDataset(parts, _weights(config), seed)
    if config.type == "coco":
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
        )
    if config.data_path is None:
        raise ConfigError(
            f"not set, and type {config.type} reads videos from it",
            key=f"{section}.data_path",
            hint=f"give {section}.data_path=FOLDER, or dataset.type=synthetic for generated videos",
        )
    _check_path(config.data_path, section, folder=config.type in ("video", "images"))
    if config.type == "training_set":
        return TrainingSet(config.data_path, config.split)
    if config.type == "sav":
        return SAVDataset(config.data_path, config.split, config.sav_masklets)
    if config.type == "video" and config.masks_path is None and _is_one_video(config.data_path):
        return open_video(config.data_path)
    source = {"video": VideoDataset, "files": VideoFileDataset, "images": ImageDataset}[config.type]
    return source(config.data_path, config.split, masks_path=config.masks_path)


def _is_one_video(path: str) -> bool:
    """Return whether a directory holds frames itself, instead of in a directory per video."""
    return bool(list_folder(path, FRAME_ENDINGS).files)


def _weights(config: DatasetConfig) -> list[float]:
    return [float(entry.get("weight", 1)) for entry in config.mixture]


def _check_path(path: str, section: str, folder: bool) -> None:
    if not (Path(path).is_dir() if folder else Path(path).exists()):
        problem = "is not a folder" if Path(path).exists() else "does not exist"
        raise DataError(
            f"{path} {problem}",
            key=f"{section}.data_path",
            value=path,
            hint="give the folder of your videos",
        )


def _with_objects(source: VideoSource, config: DatasetConfig, seed: int) -> VideoSource:
    """Composite generated objects onto the frames of a source that has no masks."""
    if source.has_masks:
        return source
    logger.info(
        "{} has no masks; compositing up to {} generated objects per video onto its frames",
        config.data_path,
        config.synthetic_objects,
    )
    return CompositedDataset(source, config.synthetic_objects, seed, config.synthetic_motion)


def _warn_of_shared_videos(
    train: VideoSource, train_config: DatasetConfig, val: VideoSource, val_config: DatasetConfig
) -> None:
    """Warn if training and validation read videos of the same name from the same place."""
    roots = [
        Path(c.data_path or c.annotation_file or "").resolve() for c in (train_config, val_config)
    ]
    # Equal names in different folders are common ("00000") and say nothing.
    shared = sorted(set(train.names) & set(val.names))
    if shared and roots[0] == roots[1]:
        logger.warning(
            "{} videos of {} are in both the training and the validation set, such as {}; "
            "validation scores will be too high",
            len(shared),
            roots[0],
            shared[0],
        )
