"""Select the videos to score, and reject those that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.data.build import build_test_source, build_validation_source
from sam2kit.data.sources.base import FrameRange, VideoSource
from sam2kit.data.splits import Splits, SplitVideo, describe
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import plural, visible_text


@dataclass(frozen=True)
class ScoredSplit:
    """How the scored videos were used in training the evaluated checkpoint.

    Attributes:
        name: ``validation`` or ``test`` (``evaluation.split``).
        recorded: whether the checkpoint stores its training videos.
        trained_on: names of videos on which the checkpoint or its initial weights were trained.
        selected_on: names of videos that were validated to select the checkpoint.
        validated_on: names of videos that were validated during training, but did not select the
            checkpoint, such as ``last.ckpt``.
        resembling: names of other videos that may be copies of training or validation videos,
            encoded again: they have the same name and length, but other pixels.
        compared_trained_on: the same as ``trained_on`` for the checkpoints in
            ``evaluation.compare``, by name; those without such videos are missing.
        monitor: the validation metric that selected the checkpoint, or None.
        max_frames: maximum number of scored frames per video, or None for no limit.
        replay: fraction of the training clips that were generated.
        videos: the scored videos with hashes of some frames, which tell apart videos of equal
            names. Generated videos are missing.
    """

    name: str
    recorded: bool
    trained_on: tuple[str, ...] = ()
    selected_on: tuple[str, ...] = ()
    monitor: str | None = None
    max_frames: int | None = None
    replay: float = 0.0
    compared_trained_on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    videos: Sequence[SplitVideo] = ()
    resembling: tuple[str, ...] = ()
    validated_on: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``metrics.json``."""
        return {
            "name": self.name,
            "recorded": self.recorded,
            "trained_on": list(self.trained_on),
            "selected_on": list(self.selected_on),
            "resembling": list(self.resembling),
            "compared_trained_on": {n: list(v) for n, v in self.compared_trained_on.items()},
            "monitor": self.monitor,
            "max_frames": self.max_frames,
        }

    @property
    def title_note(self) -> str:
        """Suffix of the report's title if a checkpoint was trained on scored videos."""
        if self.trained_on:
            return " on videos that it was trained on"
        compared = " and ".join(map(visible_text, self.compared_trained_on))
        return f" on videos that {compared} was trained on" if compared else ""

    def lines(self, count: int) -> list[str]:
        """Return sentences about the split for the report.

        Args:
            count: number of scored videos.
        """
        lines = [f"Split: {self.name}."]
        if self.max_frames is not None:
            lines[0] += f" Only the first {self.max_frames} frames of each video are scored."
        if self.trained_on:
            lines.append(
                "Warning: the checkpoint or its initial weights were trained on "
                f"{len(self.trained_on)} of the {plural(count, 'video')}, such as "
                f"{visible_text(self.trained_on[0])}. Their scores do not generalize to other "
                "videos."
            )
        for name, videos in self.compared_trained_on.items():
            lines.append(
                f"Warning: {visible_text(name)} or its initial weights were trained on "
                f"{len(videos)} of the {plural(count, 'video')}, such as "
                f"{visible_text(videos[0])}, so its scores are biased upward."
            )
        if self.selected_on:
            advice = (
                "name videos in testdataset that are not validation videos."
                if self.name == "test"
                else "hold some out with testdataset, and evaluate them with evaluation.split=test."
            )
            lines.append(
                f"Warning: {len(self.selected_on)} of the {plural(count, 'video')} were used "
                f"during training to select the best checkpoint ({self.monitor}), so their scores "
                f"are biased upward. Report scores of other videos: {advice}"
            )
        if self.resembling:
            lines.append(self.resembling_note(count))
        elif self.recorded and not self.trained_on and not self.selected_on:
            lines.append(
                "These videos were used neither for training nor to select the checkpoint."
                + " They were validated during training." * bool(self.validated_on)
            )
        elif not self.recorded:
            lines.append("The training videos of these weights are unknown.")
        if self.recorded and self.replay:
            lines.append(f"Of the training clips, {self.replay:.0%} were generated.")
        return lines

    def resembling_note(self, count: int) -> str:
        """Return the warning about videos that may be copies; ``count`` videos are scored."""
        return (
            f"Warning: {len(self.resembling)} of the {plural(count, 'video')}, such as "
            f"{visible_text(self.resembling[0])}, have the names and lengths of training or "
            "validation videos, but other pixels. If they are copies that were encoded again or "
            "resized, their scores do not generalize to other videos."
        )


def scored_source(config: Config, splits: Splits | None = None) -> VideoSource:
    """Open the videos that an evaluation scores.

    Args:
        config: ``evaluation.split`` selects the validation or the test videos, and
            ``evaluation.max_frames`` limits their frames.
        splits: the splits of the checkpoint, which are kept. None (default): no splits.

    Raises:
        ConfigError, DataError: see :func:`sam2kit.data.build.build_test_source`.
    """
    build = build_test_source if config.evaluation.split == "test" else build_validation_source
    source, limit = build(config, splits), config.evaluation.max_frames
    return source if limit is None else FrameRange(source, 0, limit)


def check_scored_videos(
    config: Config,
    source: VideoSource,
    splits: Splits | None,
    compared: Mapping[str, Splits] | None = None,
) -> ScoredSplit:
    """Reject videos on which the checkpoint or a compared checkpoint was trained.

    Args:
        config: the configuration of the evaluation.
        source: the videos to score.
        splits: the splits stored in the checkpoint, or None if it has none.
        compared: splits of the checkpoints in ``evaluation.compare``, by name. None (default): no
            such checkpoints.

    Raises:
        DataError: a video was used for training, and ``evaluation.allow_training_videos`` is false.
    """
    evaluation = config.evaluation
    compared = {} if compared is None else compared
    videos = describe(source)
    compared_trained = {name: others.trained_on(videos) for name, others in compared.items()}
    if not evaluation.allow_training_videos:
        for name, trained in compared_trained.items():
            _reject(trained, len(source), f"evaluation.compare.{name}")
    rest: dict[str, Any] = {
        "max_frames": evaluation.max_frames,
        "compared_trained_on": {
            name: tuple(video.name for video, _ in pairs)
            for name, pairs in compared_trained.items()
            if pairs
        },
        "videos": videos,
    }
    if splits is None:
        return ScoredSplit(evaluation.split, False, **rest)
    trained, validated = splits.trained_on(videos), splits.selected_on(videos)
    # Early stopping selects the last checkpoint by the validation videos, too.
    is_selected = splits.is_selected or config.trainer.early_stopping_patience is not None
    selected = validated if is_selected else []
    if not evaluation.allow_training_videos:
        _reject(trained, len(source), "the checkpoint")
    used = {video for video, _ in (*trained, *validated)}
    others = splits.resembling((v for v in videos if v not in used), evaluation.max_frames)
    split = ScoredSplit(
        evaluation.split,
        splits.seed is None or bool(splits.train),
        tuple(video.name for video, _ in trained),
        tuple(video.name for video, _ in selected),
        _monitor(config) if selected else None,
        replay=config.dataset.replay,
        resembling=tuple(video.name for video in others),
        validated_on=() if is_selected else tuple(video.name for video, _ in validated),
        **rest,
    )
    if others:
        logger.warning("{}", split.resembling_note(len(source)).removeprefix("Warning: "))
    return split


def _monitor(config: Config) -> str:
    """Return the metric that selected a run's checkpoint."""
    # Runs store the metric. Earlier versions, which do not, only had this one.
    return "val_loss" if config.trainer.monitor == "auto" else config.trainer.monitor


def _reject(trained: list[tuple[SplitVideo, SplitVideo]], count: int, checkpoint: str) -> None:
    if not trained:
        return
    video, repeated = trained[0]
    same = "" if video.name == repeated.name else f" (as {repeated.name!r})"
    raise DataError(
        f"{checkpoint} was trained on {len(trained)} of {plural(count, 'video')} to score, such as "
        f"{video.name!r}{same}",
        key="evaluation.allow_training_videos",
        value=False,
        hint="score other videos: held-out ones by omitting --data-path, test videos with "
        "evaluation.split=test, or new ones. To score these anyway, set "
        "evaluation.allow_training_videos=true; the report's title will say so",
    )
