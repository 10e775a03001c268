"""From the configuration to sources of videos and sets of clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from loguru import logger

from sam2kit.config.schema import DATASET_TYPES, Config, DatasetConfig
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.sources.base import SelectedVideos, VideoSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.components import ConnectedObjects
from sam2kit.data.sources.corrected import with_corrections
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.images import ImageDataset, picture_folders
from sam2kit.data.sources.listing import FRAME_ENDINGS, VIDEO_ENDINGS, list_folder
from sam2kit.data.sources.mixture import MixtureDataset
from sam2kit.data.sources.sav import SAVDataset
from sam2kit.data.sources.video_decoder import open_video
from sam2kit.data.sources.video_files import VideoFileDataset
from sam2kit.data.synthetic.dataset import CompositedDataset, SyntheticDataset
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import missing

# Generated validation videos are those of another seed, so that training never sees them.
VALIDATION_SEED_OFFSET = 1_000_003
_SAV = ("manual", "auto")


def build_source(config: DatasetConfig, seed: int, section: str = "dataset") -> VideoSource:
    """The source that ``config.type`` names; generated objects are laid over videos without masks.

    Args:
        config: the keys of :data:`sam2kit.config.schema.SOURCE_KEYS` and ``mixture`` are read.
        seed: of what is generated.
        section: ``dataset`` or ``valdataset``, for the messages of errors.

    Raises:
        ConfigError: a key is missing.
        DataError: a file or folder is missing or not as it should be.
    """
    return _with_objects(_open(config, seed, section), config, seed)


def open_source(what: str | Path | Config | VideoSource) -> VideoSource:
    """Whatever holds videos as a source; the first of these that fits:

    * a source: itself;
    * a configuration: the videos of its ``dataset`` with those that a run would hold out, as
      training sees them (:func:`build_validation_source` gives those of ``valdataset``);
    * a ``.json`` file: COCO JSON, its files looked for from its own folder;
    * another file: a video, with the masks of SA-V if their JSON lies beside it;
    * a folder of pictures: one video, the pictures its frames;
    * a folder of video files, or of folders of such: SA-V if JSON of its lies beside them;
    * ``images`` with ``masks``, or ``JPEGImages`` that holds pictures: single pictures;
    * a folder in DAVIS layout, or one of folders of frames.

    Endings and folders decide, no file is opened for it. What this takes for another thing, a
    configuration names with ``dataset.type``.

    Raises:
        DataError: nothing of the kind; the message lists what is understood.
        ConfigError: as :func:`build_source`.
    """
    if isinstance(what, VideoSource):
        return what
    if isinstance(what, Config):
        return build_source(what.dataset, what.seed)
    path = Path(what)
    if not path.exists():
        raise DataError(missing(path))
    if path.is_file():
        if path.suffix.lower() == ".json":
            return COCODataset(path)
        return SAVDataset(path, masklets="both") if _sav_beside([path]) else open_video(path)
    if list_folder(path, FRAME_ENDINGS).files:
        return open_video(path)
    if films := _films(path):
        return SAVDataset(path, masklets="both") if _sav_beside(films) else VideoFileDataset(path)
    pictures, _ = picture_folders(path)
    if pictures != path and list_folder(pictures, FRAME_ENDINGS).files:
        return ImageDataset(path)
    beside = sorted(p.name for p in path.glob("*.json"))
    if masklets := [name for name in beside if name.endswith(("_manual.json", "_auto.json"))]:
        film = f"{masklets[0].rpartition('_')[0]}.mp4"
        raise DataError(f"{path / masklets[0]} is SA-V's, and {film} does not lie beside it")
    if beside and not (path / "Annotations").is_dir():
        logger.info("{}: {} are not read; name one of them to open COCO JSON", path, beside[:3])
    return VideoDataset(path)


def _films(root: Path) -> list[Path]:
    """The video files of the first folder that has any, up to the first that has pictures."""
    here = list_folder(root, VIDEO_ENDINGS)
    if here.files:
        return [root / name for name in here.files]
    for folder in sorted(here.folders):
        files = list_folder(root / folder, VIDEO_ENDINGS + FRAME_ENDINGS).files
        if films := [root / folder / f for f in files if f.lower().endswith(VIDEO_ENDINGS)]:
            return films
        if files:
            return []
    return []


def _sav_beside(films: list[Path]) -> bool:
    return any(film.with_name(f"{film.stem}_{k}.json").is_file() for film in films for k in _SAV)


def build_datasets(config: Config) -> tuple[ClipDataset, ClipDataset]:
    """The clips to train on and those to validate on.

    Where ``valdataset`` names no data of its own, ``valdataset.fraction`` of the training videos
    are held out, at least one, drawn by ``config.seed``; of type synthetic, validation videos are
    generated from another seed.

    Raises:
        ConfigError: a key is missing, or there is only one video to share.
        DataError: a file or folder is missing or not as it should be.
    """
    train_config, val_config = config.dataset, config.validation_dataset()
    if _shares(config):
        train, val = _share_out(train_config, config, "dataset")
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
    """The first clip of each video by the name of its set, as validation would take it.

    Args:
        what: ``data``, in place of the ``train`` and ``validation`` videos of ``config``, whose
            sizes hold for it; see :func:`open_source`.

    Raises:
        ConfigError, DataError: as :func:`build_datasets` and :func:`open_source`.
    """
    if what is None:
        train, val = build_datasets(config)
        found = {"train": (train.source, train.config), "validation": (val.source, val.config)}
    else:
        own = replace(config.dataset, data_path=str(what))
        found = {"data": (_with_objects(open_source(what), own, config.seed), own)}
    return {
        name: ClipDataset(*of_set, training=False, seed=config.seed)
        for name, of_set in found.items()
    }


def build_validation(config: Config) -> ClipDataset:
    """The second of :func:`build_datasets`, without touching training data that it does not need.

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
    """The whole videos that :func:`build_validation` draws its clips from.

    Raises:
        ConfigError, DataError: as :func:`build_datasets`.
    """
    if _shares(config):
        return build_datasets(config)[1].source
    seed = config.seed + VALIDATION_SEED_OFFSET
    val_config = config.validation_dataset()
    return _with_objects(_open(val_config, seed, "valdataset"), val_config, seed)


def _shares(config: Config) -> bool:
    """Whether validation videos are held out of the training videos."""
    same_type = config.dataset.type == config.validation_dataset().type
    return config.holds_out_validation and same_type and config.dataset.type != "synthetic"


def _share_out(
    config: DatasetConfig, whole: Config, section: str
) -> tuple[VideoSource, VideoSource]:
    """The videos to train on and those held out, with objects; of a mixture, from each source."""
    seed, val_seed = whole.seed, whole.seed + VALIDATION_SEED_OFFSET
    if config.type == "mixture":
        parts = [
            _share_out(part, whole, f"{section}.mixture[{n}]")
            for n, part in enumerate(config.parts())
        ]
        names = [name for pair in parts for source in pair for name in source.names]
        twice = len(set(names)) < len(names)  # as in the mixture of all of them
        mixed_train, mixed_val = (
            MixtureDataset([pair[k] for pair in parts], _weights(config), s, numbered=twice)
            for k, s in enumerate((seed, val_seed))
        )
        return _corrected(mixed_train, config), _corrected(mixed_val, config)
    train = _open(config, seed, section)
    if config.type == "synthetic":
        config = replace(config, synthetic_videos=whole.valdataset.synthetic_videos)
        return train, _open(config, val_seed, section)
    train, val = hold_out(train, whole.valdataset.fraction, seed, section)
    return _with_objects(train, config, seed), _with_objects(val, config, val_seed)


def hold_out(
    source: VideoSource, fraction: float, seed: int, section: str = "dataset"
) -> tuple[VideoSource, VideoSource]:
    """Share out the videos of a source: those to train on, and ``fraction`` of them held out.

    Each part gets one at least and keeps the source's order. Who is held out depends on the seed
    and the names alone.

    Raises:
        ConfigError: there is only one video.
    """
    n = len(source)
    if n < 2:
        raise ConfigError(
            f"{section}.data_path holds one video, {source.names[0]!r}, and none can be held out "
            "for validation; name validation videos in valdataset.data_path or valdataset.split, "
            "or add a video"
        )
    by_name = sorted(range(n), key=lambda i: source.names[i])
    shuffled = np.random.default_rng((seed, 0)).permutation(n)
    count = min(max(round(n * fraction), 1), n - 1)
    held_out = {by_name[k] for k in shuffled[:count].tolist()}
    return (
        SelectedVideos(source, [i for i in range(n) if i not in held_out]),
        SelectedVideos(source, sorted(held_out)),
    )


def _open(config: DatasetConfig, seed: int, section: str) -> VideoSource:
    source = _open_type(config, seed, section)
    stored = config.type not in ("synthetic", "mixture") and source.has_masks
    if stored and config.identity == "components":
        source = ConnectedObjects(source)
    return _corrected(source, config)


def _corrected(source: VideoSource, config: DatasetConfig) -> VideoSource:
    return source if config.corrections is None else with_corrections(source, config.corrections)


def _open_type(config: DatasetConfig, seed: int, section: str) -> VideoSource:
    if config.type not in DATASET_TYPES:
        known = ", ".join(DATASET_TYPES)
        raise ConfigError(f"{section}.type is {config.type!r}; it must be one of {known}")
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
                f"{section}.annotation_file is not given; type coco needs the COCO JSON: "
                f"{section}.annotation_file=FILE"
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
            f"{section}.data_path is not given; name the folder of your videos: "
            f"{section}.data_path=FOLDER (or dataset.type=synthetic for generated ones)"
        )
    _check_path(config.data_path, section, folder=config.type in ("video", "images"))
    if config.type == "sav":
        return SAVDataset(config.data_path, config.split, config.sav_masklets)
    source = {"video": VideoDataset, "files": VideoFileDataset, "images": ImageDataset}[config.type]
    return source(config.data_path, config.split, masks_path=config.masks_path)


def _weights(config: DatasetConfig) -> list[float]:
    return [float(entry.get("weight", 1)) for entry in config.mixture]


def _check_path(path: str, section: str, folder: bool) -> None:
    if not (Path(path).is_dir() if folder else Path(path).exists()):
        what = "is not a folder" if Path(path).exists() else "does not exist"
        raise DataError(f"{section}.data_path: {path} {what}; give the folder of your videos")


def _with_objects(source: VideoSource, config: DatasetConfig, seed: int) -> VideoSource:
    if source.has_masks:
        return source
    logger.info(
        "{} has no Annotations: generated objects, at most {} a video, are laid over its frames",
        config.data_path,
        config.synthetic_objects,
    )
    return CompositedDataset(source, config.synthetic_objects, seed, config.synthetic_motion)


def _warn_of_shared_videos(
    train: VideoSource, train_config: DatasetConfig, val: VideoSource, val_config: DatasetConfig
) -> None:
    roots = [
        Path(c.data_path or c.annotation_file or "").resolve() for c in (train_config, val_config)
    ]
    shared = sorted(set(train.names) & set(val.names))
    if shared and roots[0] == roots[1]:
        logger.warning(
            "{} videos of {} are trained on and validated on, such as {}: the validation will look "
            "better than it is",
            len(shared),
            roots[0],
            shared[0],
        )
