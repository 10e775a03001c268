"""The doctor: all videos read, compared with each other, and told as text, JSON or HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data.build import build_datasets, open_source
from sam2kit.data.doctor.video_checks import Finding, VideoRecord, read_video
from sam2kit.data.parallel import each_video
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import figure_text, visible_text
from sam2kit.viz.html import render
from sam2kit.viz.plots import LINE_COLORS, WIDTH
from sam2kit.viz.tables import Table

ROWS_OF_TEXT = 40
ROWS_OF_PAGE = 500


@dataclass
class Examination:
    """What the doctor found.

    Attributes:
        data: what was read, by part: ``training`` and perhaps ``validation``.
        settings: those of training that problems were judged by.
        videos: in order, training first.
        findings: of opening the data, of each video in order, of the videos against each other.
    """

    data: dict[str, str]
    settings: dict[str, int]
    videos: list[VideoRecord]
    findings: list[Finding]

    @property
    def broken(self) -> bool:
        """Whether training would stop at this data."""
        return any(f.severity == "error" for f in self.findings)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each video; see :meth:`VideoRecord.row`."""
        return [video.row() for video in self.videos]

    def finding_rows(self) -> list[dict[str, str]]:
        """A row for each problem, the errors first."""
        return [asdict(f) for f in sorted(self.findings, key=lambda f: f.severity != "error")]

    def summary(self) -> list[dict[str, Any]]:
        """A row for each part: how much there is of what."""
        return [
            {
                "part": part,
                "videos": len(of_part),
                "frames": sum(v.frames for v in of_part),
                "annotated": sum(v.annotated for v in of_part),
                "objects": sum(row["objects"] for row in map(VideoRecord.row, of_part)),
                "masks": sum(sum(v.visible) for v in of_part),
                "sizes": ", ".join(
                    f"{w}x{h}" for h, w in sorted({v.size for v in of_part if v.size})
                ),
            }
            for part in self.data
            for of_part in [[v for v in self.videos if v.part == part]]
        ]

    def verdict(self) -> str:
        """One line: how many problems there are, and whether training would stop."""
        errors = sum(f.severity == "error" for f in self.findings)
        if not self.findings:
            return "no problems found"
        count = f"{len(self.findings)} problem{'s' * (len(self.findings) > 1)}"
        return f"{count}; {errors} of them would stop training" if errors else f"{count}, no error"

    def text(self) -> str:
        """Tables, then a line for each problem."""
        lines = [f"{part}: {visible_text(where)}" for part, where in self.data.items()]
        lines += ["", str(Table(self.summary()))]
        if rows := self.rows():
            lines += ["", str(Table(rows[:ROWS_OF_TEXT]))]
        if len(rows) > ROWS_OF_TEXT:
            lines += [f"and {len(rows) - ROWS_OF_TEXT} more videos"]
        lines += ["", *(_told(row) for row in self.finding_rows())]
        return "\n".join([*lines, self.verdict()])

    def to_json(self) -> str:
        """Everything but the frames' hashes: ``schema_version``, ``broken``, ``videos`` ..."""
        videos = []
        for video, row in zip(self.videos, self.rows(), strict=True):
            objects = {
                str(who): {
                    "visible": len(own.areas),
                    "area": [float(np.quantile(own.areas, q)) for q in (0, 0.5, 1)],
                }
                for who, own in video.objects.items()
                if own.areas
            }
            videos.append(row | {"annotated_frames": video.annotated, "object_areas": objects})
        content = {
            "schema_version": 1,
            "broken": self.broken,
            "data": self.data,
            "settings": self.settings,
            "summary": self.summary(),
            "findings": self.finding_rows(),
            "videos": videos,
        }
        return json.dumps(content, indent=1)

    def histograms(self) -> Figure:
        """How many videos, objects and frames there are of which kind."""
        videos = self.videos
        areas = [float(np.median(o.areas)) for v in videos for o in v.objects.values() if o.areas]
        panels: dict[str, Sequence[float]] = {
            "frames in a video": [v.frames for v in videos],
            "annotated frames in a video, %": [100 * v.annotated / v.frames for v in videos],
            "objects in a video": [row["objects"] for row in self.rows()],
            "visible objects on a frame": [n for v in videos for n in v.visible],
            "object's area in % of the frame": [100 * a for a in areas],
            "frames that show an object, %": [
                100 * len(o.areas) / v.annotated
                for v in videos
                for o in v.objects.values()
                if o.areas
            ],
        }
        return histograms(panels)

    def page(self) -> str:
        """One HTML page that needs nothing beside it."""
        rows = self.rows()
        return render(
            "doctor.html",
            examination=self,
            summary=self.summary(),
            findings=self.finding_rows(),
            rows=rows[:ROWS_OF_PAGE],
            left_out=max(len(rows) - ROWS_OF_PAGE, 0),
            figure=self.histograms() if rows else None,
        )


def histograms(panels: Mapping[str, Sequence[float]]) -> Figure:
    """A histogram for each title, two beside each other; of shares where it ends in ``, %``."""
    rows = -(-len(panels) // 2)
    figure = Figure((WIDTH, 1.7 * rows), dpi=120, layout="constrained")
    for axes, (title, given) in zip(figure.subplots(rows, 2).flat, panels.items(), strict=False):
        values = np.asarray(given, float)
        share = title.endswith(", %")
        whole = len(values) and (values % 1 == 0).all() and np.ptp(values) < 20 and not share
        bins: Any = np.linspace(0, 100, 21) if share else 20
        if whole:
            bins = np.arange(values.min() - 0.5, values.max() + 1)
            axes.set_xlim(max(values.min() - 2, -0.7), values.max() + 2)
        axes.hist(values, bins, color=LINE_COLORS[0] / 255, rwidth=0.9)
        axes.set_title(figure_text(title), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if whole:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def run_doctor(
    what: str | Path | Config | VideoSource,
    settings: DatasetConfig | None = None,
    val: str | Path | VideoSource | None = None,
    workers: int = 0,
) -> Examination:
    """Read all frames and masks once, and say what there is and what is wrong with it.

    Nothing stops at the first problem: what cannot be opened or read is told, and the rest is read.
    Memory grows by some bytes a frame, however large the frames are.

    Args:
        what: as :func:`~sam2kit.data.build.open_source` takes it; of a configuration, the training
            and the validation videos of its run are read.
        settings: ``image_size``, ``video_clip_length`` and ``frame_stride`` of training; None: the
            configuration's, or the defaults.
        val: validation videos, which must not be among the training videos.
        workers: processes that read.

    Raises:
        ConfigError: a configuration that names no data.
        KeyboardInterrupt: between two videos.
    """
    findings: list[Finding] = []
    if settings is None:
        settings = what.dataset if isinstance(what, Config) else DatasetConfig()
    sources: dict[str, VideoSource | None] = {}
    data = {"training": _called(what)}
    refused = None
    if isinstance(what, Config) and val is None:
        try:
            train_clips, val_clips = build_datasets(what)
            sources = {"training": train_clips.source, "validation": val_clips.source}
            data["validation"] = "as the configuration says"
        except DataError as error:
            refused = error  # said below, unless reading what can be read says it too
    if not sources:
        sources["training"] = _open(what, findings)
        if val is not None:
            sources["validation"], data["validation"] = _open(val, findings), _called(val)
    videos: list[VideoRecord] = []
    for part, source in sources.items():
        if source is not None:
            work = partial(read_video, settings=settings, part=part)
            videos += each_video(work, source, workers, f"{part}: read")
    findings += [f for video in videos for f in video.findings]
    if refused is not None and not any(f.severity == "error" for f in findings):
        findings.insert(0, Finding("error", "refused", data["training"], str(refused)))
    findings += same_names(videos) + same_frames(videos)
    judged_by = {
        k: getattr(settings, k) for k in ("image_size", "video_clip_length", "frame_stride")
    }
    return Examination(data, judged_by, videos, findings)


def _called(what: str | Path | Config | VideoSource) -> str:
    if isinstance(what, Config):
        return what.dataset.annotation_file or what.dataset.data_path or what.dataset.type
    return type(what).__name__ if isinstance(what, VideoSource) else str(what)


def _open(what: str | Path | Config | VideoSource, findings: list[Finding]) -> VideoSource | None:
    """The source; of frame folders that it refuses, the videos that can be used."""

    def tell(error: DataError) -> None:
        findings.append(Finding("error", "refused", _called(what), str(error)))

    try:
        return open_source(what)
    except DataError as error:
        root: Any = what
        split = None
        if isinstance(what, Config):
            root = what.dataset.data_path if what.dataset.type == "video" else None
            split = what.dataset.split
        if not isinstance(root, (str, Path)) or not Path(root).is_dir():
            tell(error)
            return None
    try:
        return VideoDataset(root, split, refused=tell)
    except DataError as error:
        tell(error)
        return None


def same_names(videos: Sequence[VideoRecord]) -> list[Finding]:
    """Training and validation videos of one name and length."""
    known = {(v.name, v.frames) for v in videos if v.part == "training"}
    return [
        Finding(
            "warning",
            "shared",
            f"video {v.name!r}",
            f"a training and a validation video have this name and {v.frames} frames; is it one "
            "video, take it out of one of the two, or the validation will look better than it is",
        )
        for v in videos
        if v.part == "validation" and (v.name, v.frames) in known
    ]


def same_frames(videos: Sequence[VideoRecord]) -> list[Finding]:
    """Pairs of videos that have frames with the same pixels."""
    hashes = np.concatenate([v.hashes for v in videos] or [np.zeros(0, np.uint64)])
    owner = np.repeat(np.arange(len(videos)), [len(v.hashes) for v in videos])
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    # Of each group of equal frames, every video with the first.
    start = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
    first = owner[np.maximum.accumulate(np.where(start, np.arange(len(hashes)), 0))]
    apart = (hashes != 0) & (owner != first)
    pairs = Counter(zip(first[apart].tolist(), owner[apart].tolist(), strict=True))
    findings = []
    for (a, b), count in sorted(pairs.items()):
        one, other = videos[a], videos[b]
        parts = one.part != other.part
        harm = "the validation will look better than it is" if parts else "they count twice"
        findings.append(
            Finding(
                "warning",
                "shared" if parts else "duplicates",
                f"{one.part} video {one.name!r} and {other.part} video {other.name!r}",
                f"{count} frame{'s' * (count > 1)} with the same pixels; leave one of the videos "
                f"out, or {harm}",
            )
        )
    return findings


def _told(row: Mapping[str, str]) -> str:
    where = "" if row["where"] in row["message"] else f"{row['where']}: "
    return visible_text(f"{row['severity']} ({row['kind']}): {where}{row['message']}")
