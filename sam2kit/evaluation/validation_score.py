"""Compute J&F on whole validation videos during training, for ``trainer.monitor=val_jf``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.data.sources.base import FrameRange, VideoSource
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.scores import COPY, VideoScores, summary
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.checkpoints import read_run_config
from sam2kit.models.sam2 import SAM2Model
from sam2kit.utils.errors import CheckpointError, DataError
from sam2kit.utils.sampling import evenly_spaced


def jf_scorer(
    config: Config, run_dir: str | Path | None = None
) -> Callable[[SAM2Model, VideoSource], float] | None:
    """Return the scorer that a configuration requires for training.

    The scorer tracks the first ``trainer.jf_frames`` frames of up to ``trainer.jf_videos`` evenly
    spaced validation videos, always the same ones, with the protocol in ``evaluation``. It does not
    use the validation clips.

    Args:
        config: the configuration of the run.
        run_dir: the directory of the run to resume, which keeps its metric if ``trainer.monitor``
            is ``auto``. None (default): the run is new or in ``trainer.resume_from``.

    Returns:
        The argument ``scorer`` of :func:`sam2kit.fit`, or None unless the metric is ``val_jf``.
    """
    return _WholeVideos(config) if _monitor(config, run_dir) == "val_jf" else None


def _monitor(config: Config, run_dir: str | Path | None) -> str:
    """Return ``trainer.monitor``, or the metric of the run to resume if it is ``auto``.

    Unreadable checkpoints are skipped here, because ``fit`` reports them.
    """
    monitor, resume_from = config.trainer.monitor, config.trainer.resume_from
    files = [] if run_dir is None else [Path(run_dir) / f"{name}.ckpt" for name in ("last", "best")]
    files += [] if resume_from is None else [Path(resume_from)]
    for file in files if monitor == "auto" else ():
        with suppress(CheckpointError):
            return read_run_config(file).trainer.monitor
    return monitor


@dataclass(frozen=True)
class _WholeVideos:
    """Score whole videos as described in :func:`jf_scorer`."""

    config: Config

    def __call__(self, model: SAM2Model, source: VideoSource) -> float:
        """Return the mean J&F over objects, from 0 to 1.

        Raises:
            DataError: no frame can be scored.
        """
        scores = list(self._scores(TrackerRun("val_jf", model), source))
        mean = summary(scores)["J&F"] if scores else None
        if mean is None:
            raise self._no_score()
        return float(mean)

    def check(self, source: VideoSource) -> None:
        """Check that the scored frames contain one that can be scored; ``fit`` calls this.

        Raises:
            DataError: as :meth:`__call__`.
        """
        # The copied mask needs no model, and is scored on the same frames.
        videos = self._scores(TrackerRun(COPY, None), source)
        if not any(summary([video])["J&F"] is not None for video in videos):
            raise self._no_score()

    def _scores(self, run: TrackerRun, source: VideoSource) -> Iterator[VideoScores]:
        """Score the selected videos one by one."""
        t = self.config.trainer
        if t.jf_frames is not None:
            source = FrameRange(source, 0, t.jf_frames)
        for i in evenly_spaced(len(source), t.jf_videos or len(source)):
            if objects := list(first_visible_frames(source, i)[0]):
                scores = run.score(source, i, objects, self.config)
                logger.debug("{}, {}: J&F {}", run.name, source.names[i], summary([scores])["J&F"])
                yield scores

    def _no_score(self) -> DataError:
        return DataError(
            "no object can be scored in the first frames of the validation videos, because only "
            "frames that are prompted are annotated",
            key="trainer.jf_frames",
            value=self.config.trainer.jf_frames,
            hint="increase it and trainer.jf_videos, or set trainer.monitor=val_iou",
        )
