"""Examine the videos of a dataset, and report problems as text, JSON or HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data.build import build_datasets, open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.doctor.video_checks import (
    Finding,
    VideoRecord,
    left_out_finding,
    read_video,
)
from sam2kit.data.intensity import IntensityRule
from sam2kit.data.parallel import each_video
from sam2kit.data.problems import no_masks
from sam2kit.data.sources.base import NOTE, VideoSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import figure_text, visible_text
from sam2kit.viz.html import render
from sam2kit.viz.plots import LINE_COLORS, WIDTH
from sam2kit.viz.tables import Table

MAX_ROWS_OF_TEXT = 40
MAX_ROWS_OF_PAGE = 500


@dataclass
class Examination:
    """Hold the result of the doctor.

    Attributes:
        data: description of the data by part: ``training`` and possibly ``validation``.
        settings: training settings that the checks used (image size, clip length, stride, maximum
            distance of annotated frames).
        videos: the videos in order, training first.
        findings: problems in opening the data, then in each video in order, then in the comparison
            of videos.
        notes: how the data are read where there was a choice, such as the meaning of mask values.
    """

    data: dict[str, str]
    settings: dict[str, int]
    videos: list[VideoRecord]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether training would reject the data."""
        return any(f.severity == "error" for f in self.findings)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table row per video; see :meth:`VideoRecord.row`."""
        return [video.row() for video in self.videos]

    def finding_rows(self) -> list[dict[str, str]]:
        """Return a row per problem, errors first."""
        return [asdict(f) for f in sorted(self.findings, key=lambda f: f.severity != "error")]

    def summary(self) -> list[dict[str, Any]]:
        """Return a row per part: numbers of videos, frames, objects and masks, and frame sizes."""
        return [
            {
                "part": part,
                "videos": len(videos),
                "frames": sum(v.frames for v in videos),
                "annotated": sum(v.annotated for v in videos),
                "objects": sum(row["objects"] for row in map(VideoRecord.row, videos)),
                "masks": sum(sum(v.visible) for v in videos),
                "sizes": ", ".join(
                    f"{w}x{h}" for h, w in sorted({v.size for v in videos if v.size})
                ),
            }
            for part in self.data
            for videos in [[v for v in self.videos if v.part == part]]
        ]

    def verdict(self) -> str:
        """Summarise in one line how many problems there are, and how many would stop training."""
        errors = sum(f.severity == "error" for f in self.findings)
        if not self.findings:
            return "no problems found"
        count = f"{len(self.findings)} problem{'s' * (len(self.findings) > 1)}"
        return f"{count}; {errors} of them would stop training" if errors else f"{count}, no error"

    def text(self) -> str:
        """Format the tables, then one line per problem."""
        lines = [f"{part}: {visible_text(where)}" for part, where in self.data.items()]
        lines += [f"note: {visible_text(note)}" for note in self.notes]
        lines += ["", str(Table(list(map(with_units, self.summary()))))]
        if rows := self.rows():
            lines += ["", str(Table(list(map(with_units, rows[:MAX_ROWS_OF_TEXT]))))]
        if len(rows) > MAX_ROWS_OF_TEXT:
            lines += [f"and {len(rows) - MAX_ROWS_OF_TEXT} more videos"]
        lines += ["", *(_finding_line(row) for row in self.finding_rows())]
        return "\n".join([*lines, self.verdict()])

    def to_json(self) -> str:
        """Format everything but the hashes of the frames as JSON.

        Fields: ``schema_version``, ``broken``, ``data``, ``notes``, ``settings``, ``summary``,
        ``findings`` and ``videos``.
        """
        videos = []
        for video, row in zip(self.videos, self.rows(), strict=True):
            objects = {
                str(object_id): {
                    "visible": len(record.areas),
                    "area": [float(np.quantile(record.areas, q)) for q in (0, 0.5, 1)],
                }
                for object_id, record in video.objects.items()
                if record.areas
            }
            videos.append(row | {"annotated_frames": video.annotated, "object_areas": objects})
        content = {
            "schema_version": 1,
            "broken": self.broken,
            "data": self.data,
            "notes": self.notes,
            "settings": self.settings,
            "summary": self.summary(),
            "findings": self.finding_rows(),
            "videos": videos,
        }
        return json.dumps(content, indent=1)

    def histograms(self) -> Figure:
        """Plot histograms of the lengths, annotations and objects of the videos."""
        videos = self.videos
        areas = [float(np.median(o.areas)) for v in videos for o in v.objects.values() if o.areas]
        panels: dict[str, Sequence[float]] = {
            "frames per video": [v.frames for v in videos],
            "annotated frames per video, %": [100 * v.annotated / v.frames for v in videos],
            "objects per video": [row["objects"] for row in self.rows()],
            "visible objects per frame": [n for v in videos for n in v.visible],
            "object area in % of the frame": [100 * a for a in areas],
            "annotated frames that show an object, %": [
                100 * len(o.areas) / v.annotated
                for v in videos
                for o in v.objects.values()
                if o.areas
            ],
        }
        return histograms(panels)

    def page(self) -> str:
        """Render a self-contained HTML page."""
        rows = self.rows()
        return render(
            "doctor.html",
            examination=self,
            summary=self.summary(),
            findings=self.finding_rows(),
            rows=rows[:MAX_ROWS_OF_PAGE],
            omitted_rows=max(len(rows) - MAX_ROWS_OF_PAGE, 0),
            figure=self.histograms() if rows else None,
        )


# The columns of VideoRecord.row that are shares: their titles in percent, and decimals.
SHARES = {
    "annotated": ("annotated, % of frames", 0),
    "visible": ("visible, % of annotated", 0),
    "smallest": ("smallest, % of frame", 2),
    "largest": ("largest, % of frame", 2),
}
UNITS = {"size": "size, px", "sizes": "sizes, px", "tracked truth": "tracked truth, frames"}


def with_units(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table row for people: with units, and shares in percent."""
    result = {}
    for key, value in row.items():
        if isinstance(value, float) and key in SHARES:
            value = f"{100 * value:.{SHARES[key][1]}f}"
        result[key] = value
    is_video = "video" in row  # the summary counts annotated frames
    titles = UNITS | ({key: title for key, (title, _) in SHARES.items()} if is_video else {})
    return {titles.get(key, key): value for key, value in result.items()}


def histograms(panels: Mapping[str, Sequence[float]]) -> Figure:
    """Plot one histogram per title, in two columns.

    Args:
        panels: the values by title. A title that ends in ``, %`` has an axis from 0 to 100.
    """
    rows = -(-len(panels) // 2)
    figure = Figure((WIDTH, 1.7 * rows), dpi=120, layout="constrained")
    for axes, (title, data) in zip(figure.subplots(rows, 2).flat, panels.items(), strict=False):
        values = np.asarray(data, float)
        is_share = title.endswith(", %")
        # One bar per integer where there are few: wider bins would hide single values.
        is_count = len(values) and (values % 1 == 0).all() and np.ptp(values) < 20 and not is_share
        bins: Any = np.linspace(0, 100, 21) if is_share else 20
        if is_count:
            bins = np.arange(values.min() - 0.5, values.max() + 1)
            axes.set_xlim(max(values.min() - 2, -0.7), values.max() + 2)
        axes.hist(values, bins, color=LINE_COLORS[0] / 255, rwidth=0.9)
        axes.set_title(figure_text(title), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if is_count:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def run_doctor(
    what: str | Path | Config | VideoSource,
    settings: DatasetConfig | None = None,
    val: str | Path | VideoSource | None = None,
    workers: int = 0,
) -> Examination:
    """Read all frames and masks once, and report the content and the problems of the data.

    A problem does not stop the examination: files that cannot be read are reported, and the others
    are read. Memory grows by a few bytes per frame, for frames of any size.

    Args:
        what: the data, as for :func:`~sam2kit.data.build.open_source`. For a configuration, the
            training and the validation videos of its run are read.
        settings: ``image_size``, ``video_clip_length``, ``frame_stride`` and the like are those of
            training. None (default): those of the configuration, or the defaults.
        val: validation videos, which are compared with the training videos. None (default): those
            of the configuration, or none.
        workers: number of processes that read; 0 (default): this process.

    Raises:
        ConfigError: a configuration that names no data.
    """
    findings: list[Finding] = []
    if settings is None:
        settings = what.dataset if isinstance(what, Config) else DatasetConfig()
    sources: dict[str, VideoSource | None] = {}
    data = {"training": _describe(what)}
    clips = open_error = None
    if isinstance(what, Config) and val is None:
        try:
            clips, val_clips = build_datasets(what)
            sources = {"training": clips.source, "validation": val_clips.source}
            data["validation"] = "as configured"
        except DataError as error:
            # Reported below, unless reading the remaining videos reports the cause more precisely.
            open_error = error
    if not sources:
        sources["training"] = _open(what, settings, findings)
        if val is not None:
            val_settings = replace(settings, masks_path=None, split=None)
            sources["validation"] = _open(val, val_settings, findings)
            data["validation"] = _describe(val)
    videos: list[VideoRecord] = []
    for part, source in sources.items():
        if source is not None:
            new = [left_out_finding(entry) for entry in source.left_out()]
            findings += [f for f in new if f not in findings]  # both parts may share a source
            work = partial(read_video, settings=settings, part=part)
            videos += each_video(work, source, workers, f"{part}: read")
        if source is not None and not source.has_masks and not settings.synthetic_objects:
            where = data[part]
            problem = str(no_masks(where, remarks=source.remarks))
            findings.append(Finding("error", "unannotated", where, problem))
    remarks = [r for source in sources.values() if source is not None for r in source.remarks]
    remarks = list(dict.fromkeys(remarks))
    notes = [f"{r.where}: {r.message}" for r in remarks if r.kind == NOTE]
    if clips is not None and clips.num_replayed:
        share = clips.config.replay
        notes.append(f"dataset.replay={share}: a training epoch has {clips.epoch_text()}")
    findings += [Finding("warning", *astuple(r)) for r in remarks if r.kind != NOTE]
    findings += [f for video in videos for f in video.findings]
    if open_error is not None and not any(f.severity == "error" for f in findings):
        findings.insert(0, Finding("error", "refused", data["training"], str(open_error)))
    findings += same_names(videos) + same_frames(videos)
    used_settings = {
        k: getattr(settings, k)
        for k in ("image_size", "video_clip_length", "frame_stride", "max_annotation_gap")
    }
    return Examination(data, used_settings, videos, findings, notes)


def _describe(what: str | Path | Config | VideoSource) -> str:
    """Name the data in the report: by path, type of dataset or class."""
    if isinstance(what, Config):
        return what.dataset.annotation_file or what.dataset.data_path or what.dataset.type
    return type(what).__name__ if isinstance(what, VideoSource) else str(what)


def _open(
    what: str | Path | Config | VideoSource, settings: DatasetConfig, findings: list[Finding]
) -> VideoSource | None:
    """Open the data; if one of several frame folders is invalid, open the others.

    Args:
        what: the data.
        settings: how a path is read, such as ``masks_path``.
        findings: receives what cannot be opened.

    Returns:
        The source, or None if nothing can be opened.
    """

    def report(error: DataError) -> None:
        findings.append(Finding("error", "refused", _describe(what), str(error)))

    try:
        return open_source(what, settings)
    except DataError as error:
        keys = what.dataset if isinstance(what, Config) else settings
        root = _frame_folders_of(what, keys)
        if root is None:
            report(error)
            return None
    try:
        rule = IntensityRule.from_config(keys)
        return VideoDataset(
            root,
            keys.split,
            masks_path=keys.masks_path,
            refused=report,
            mask_values=keys.mask_values,
            mask_colours=keys.mask_colours,
            intensity=rule,
        )
    except DataError as error:
        report(error)
        return None


def _frame_folders_of(
    what: str | Path | Config | VideoSource, keys: DatasetConfig
) -> str | Path | None:
    """Return the folder of data that are folders of frames; None for others.

    Args:
        what: the data.
        keys: how they are read, such as ``type``.
    """
    root: str | Path | None
    if isinstance(what, Config):
        root = what.dataset.data_path
    elif isinstance(what, (str, Path)):
        root = what
    else:
        return None
    if root is None or not Path(root).is_dir():
        return None
    try:
        is_found = keys.type in ("auto", "mixture", "synthetic")  # as in open_source
        layout_type = detect_layout(root).type if is_found else keys.type
    except DataError:
        return None
    return root if layout_type == "video" else None


def same_names(videos: Sequence[VideoRecord]) -> list[Finding]:
    """Find validation videos with the name and length of a training video."""
    known = {(v.name, v.frames) for v in videos if v.part == "training"}
    return [
        Finding(
            "warning",
            "shared",
            f"video {v.name!r}",
            f"a training and a validation video have this name and {v.frames} frames; if they are "
            "the same video, remove it from one of the two sets, or validation scores will be too "
            "high",
        )
        for v in videos
        if v.part == "validation" and (v.name, v.frames) in known
    ]


def same_frames(videos: Sequence[VideoRecord]) -> list[Finding]:
    """Find pairs of videos that share frames with the same pixels."""
    hashes = np.concatenate([v.hashes for v in videos] or [np.zeros(0, np.uint64)])
    video = np.repeat(np.arange(len(videos)), [len(v.hashes) for v in videos])
    # Sorting brings equal frames together, in time n log n instead of comparing all pairs.
    order = np.argsort(hashes, kind="stable")
    hashes, video = hashes[order], video[order]
    # In each group of equal frames, pair every video with the first one.
    start = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
    first = video[np.maximum.accumulate(np.where(start, np.arange(len(hashes)), 0))]
    is_shared = (hashes != 0) & (video != first)
    pairs = Counter(zip(first[is_shared].tolist(), video[is_shared].tolist(), strict=True))
    findings = []
    for (a, b), count in sorted(pairs.items()):
        one, other = videos[a], videos[b]
        across_parts = one.part != other.part
        harm = "validation scores will be too high" if across_parts else "they count twice"
        findings.append(
            Finding(
                "warning",
                "shared" if across_parts else "duplicates",
                f"{one.part} video {one.name!r} and {other.part} video {other.name!r}",
                f"{count} frame{'s' * (count > 1)} with the same pixels; remove one of the videos, "
                f"or {harm}",
            )
        )
    return findings


def _finding_line(row: Mapping[str, str]) -> str:
    """Format a problem as one line of text; the file is not repeated if the message names it."""
    where = "" if row["where"] in row["message"] else f"{row['where']}: "
    return visible_text(f"{row['severity']} ({row['kind']}): {where}{row['message']}")
