"""Select the videos to score, and reject those that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam2kit.config.schema import Config
from sam2kit.data.build import build_test_source, build_validation_source
from sam2kit.data.sources.base import FirstFrames, VideoSource
from sam2kit.data.splits import Splits, SplitVideo, describe
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import plural, visible_text


@dataclass(frozen=True)
class ScoredSplit:
    """What the checkpoint under evaluation has seen of the scored videos.

    Attributes:
        name: ``validation`` or ``test``: ``evaluation.split``.
        recorded: whether the checkpoint says which videos it was trained on.
        trained_on: names of the videos that it, or a checkpoint that it started from, was trained
            on.
        selected_on: names of the videos that validated its training.
        monitor: the metric of the validation that selected it; None if nothing was.
        max_frames: maximum number of frames that are scored per video; None: no limit.
        replay: fraction of the clips of the training that were generated beside its videos.
    """

    name: str
    recorded: bool
    trained_on: tuple[str, ...] = ()
    selected_on: tuple[str, ...] = ()
    monitor: str | None = None
    max_frames: int | None = None
    replay: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``metrics.json``."""
        return {
            "name": self.name,
            "recorded": self.recorded,
            "trained_on": list(self.trained_on),
            "selected_on": list(self.selected_on),
            "monitor": self.monitor,
            "max_frames": self.max_frames,
        }

    @property
    def title_note(self) -> str:
        """End of the report's title: a warning if the checkpoint was trained on the videos."""
        return " on videos that it was trained on" if self.trained_on else ""

    def lines(self, count: int) -> list[str]:
        """Return sentences on the split for the report.

        Args:
            count: number of scored videos.
        """
        lines = [f"Split: {self.name}."]
        if self.max_frames is not None:
            lines[0] += f" Of each video, up to {self.max_frames} frames from its first are scored."
        if self.trained_on:
            lines.append(
                "Warning: the checkpoint, or one that it started from, was trained on "
                f"{len(self.trained_on)} of the {plural(count, 'video')}, such as "
                f"{visible_text(self.trained_on[0])}. Their scores say nothing about other videos."
            )
        if self.selected_on:
            lines.append(
                f"Warning: {len(self.selected_on)} of the {plural(count, 'video')} validated the "
                f"training and selected its best checkpoint ({self.monitor}), so their scores are "
                "too high by an unknown amount. Report the scores of other videos: hold some out "
                "with testdataset, and evaluate them with evaluation.split=test."
            )
        elif self.recorded and not self.trained_on:
            lines.append("Neither training nor the selection of the checkpoint used these videos.")
        elif not self.recorded:
            lines.append("It is not recorded on which videos the weights were trained.")
        if self.recorded and self.replay:
            lines.append(f"Of the training clips, {self.replay:.0%} were generated.")
        return lines


def scored_source(config: Config, splits: Splits | None = None) -> VideoSource:
    """Build the source of the videos that an evaluation scores.

    Args:
        config: ``evaluation.split`` selects the validation or the test videos, and
            ``evaluation.max_frames`` limits their frames.
        splits: the splits of the checkpoint, whose videos keep their part. None (default): none.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.data.build.build_test_source`.
    """
    build = build_test_source if config.evaluation.split == "test" else build_validation_source
    source, limit = build(config, splits), config.evaluation.max_frames
    return source if limit is None else FirstFrames(source, limit)


def check_scored_videos(
    config: Config,
    source: VideoSource,
    splits: Splits | None,
    compared: Mapping[str, Splits] | None = None,
) -> ScoredSplit:
    """Reject videos that the checkpoint, or one that is compared with it, was trained on.

    Args:
        config: the configuration of the evaluation.
        source: the videos to score.
        splits: the splits of the checkpoint; None: it does not store any.
        compared: splits of the checkpoints of ``evaluation.compare``, by name. None (default):
            none.

    Raises:
        DataError: a video was trained on, and ``evaluation.allow_training_videos`` is false.
    """
    evaluation = config.evaluation
    compared = {} if compared is None else compared
    videos = describe(source) if splits is not None or compared else []
    if not evaluation.allow_training_videos:
        for name, others in compared.items():
            _reject(others.trained_on(videos), len(source), f"evaluation.compare.{name}")
    if splits is None:
        return ScoredSplit(evaluation.split, False, max_frames=evaluation.max_frames)
    trained, selected = splits.trained_on(videos), splits.selected_on(videos)
    if not evaluation.allow_training_videos:
        _reject(trained, len(source), "the checkpoint")
    return ScoredSplit(
        evaluation.split,
        splits.seed is None or bool(splits.train),
        tuple(video.name for video, _ in trained),
        tuple(video.name for video, _ in selected),
        _monitor(config) if selected else None,
        evaluation.max_frames,
        config.dataset.replay,
    )


def _monitor(config: Config) -> str:
    """Return the metric that selected the checkpoint of a run."""
    # Runs store the metric that was used. Versions that did not knew no other than this one.
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
        hint="score other videos: the held-out ones without --data-path, those of testdataset with "
        "evaluation.split=test, or new ones; or set evaluation.allow_training_videos=true, which "
        "the report shows in its title",
    )
