"""Read the layout of the Cell Tracking Challenge: frames, segmentations and tracking markers."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loguru import logger

from sam2kit.data.intensity import DEFAULT_RULE, IntensityRule
from sam2kit.data.lineage import Track, read_tracks
from sam2kit.data.sources.base import IGNORED, LeftOut, ObjectId, Remark
from sam2kit.data.sources.listing import list_folder, sort_files
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.stacks import StackSource, integer_labels, labels_in, overlapping
from sam2kit.data.sources.tiff import DEFAULT_OPTIONS, TIFF_ENDINGS, StackOptions, TiffSequence
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

LAYOUT = (
    "01/t000.tif with 01_GT/SEG/man_seg000.tif, 01_GT/TRA/man_track000.tif and "
    "01_GT/TRA/man_track.txt"
)
OBJECTS = "objects.json"


class _Sequence(NamedTuple):
    """The files of one sequence; a folder of labels without files is None."""

    names: list[str]
    frames: TiffSequence
    gold: TiffSequence | None
    silver: TiffSequence | None
    markers: TiffSequence | None
    tracks: dict[int, Track]
    ids: dict[int, ObjectId]  # ids of labels that are not the labels themselves


class CTCDataset(StackSource):
    """Read 2D datasets of the Cell Tracking Challenge (Maška et al., Nature Methods, 2023).

    ``ROOT/01/t000.tif`` are the frames of sequence ``01``. Masks come from segmentations and
    identities from tracking:

    * ``01_GT/SEG/man_seg000.tif`` (gold truth) has exact masks on some frames, whose labels are
      arbitrary. A mask belongs to the track whose marker in ``01_GT/TRA/man_track000.tif`` it
      covers by more than half, the rule of the challenge. If it covers several markers, the one
      with the largest overlap is used. A mask without a marker has no identity and is left out;
    * a frame on which a marker has no mask is unannotated, because that cell is not absent;
    * ``01_ST/SEG/man_seg000.tif`` (silver truth) is used on frames without usable gold truth;
    * frames with neither are unannotated.

    What is left out is logged when a frame is read, and counted by the doctor. ``man_track.txt``
    names the parents: daughters are new objects (:meth:`parents`).

    Args:
        root: the dataset.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        rule: how frames of more than 8 bits are scaled.
        options: how the axes of a frame are read.
        strict: raise an error for a sequence that cannot be read. If False, it is left out.
        truth: ``gold``, ``silver``, ``track`` (the markers themselves are the masks) or ``auto``
            (default): gold, else silver.

    Raises:
        DataError: no sequences, a missing or damaged file, markers without a line in
            ``man_track.txt``, or masks of a different size.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        rule: IntensityRule = DEFAULT_RULE,
        options: StackOptions = DEFAULT_OPTIONS,
        truth: str = "auto",
        strict: bool = False,
    ) -> None:
        super().__init__(root, rule, strict)
        self.truth, self._options = truth, options
        names = find_sequences(self.root)
        if not names:
            raise DataError(f"{root} contains no sequences", hint=f"expected {LAYOUT}")
        self._sequences = self.open_videos({n: n for n in names}, split, self._open_sequence)
        self.has_masks = any(self._truths(s) for s in self._sequences)
        only_markers = [s for s in self._sequences if s.markers and not self._truths(s)]
        if only_markers and not self.has_masks:
            raise DataError(
                f"{root} has tracking markers, but no segmentations",
                key="dataset.ctc_truth",
                value=truth,
                expected="track, to use the markers as masks",
                hint="or add 01_GT/SEG or 01_ST/SEG",
            )
        # Video and problem -> frame -> labels.
        self._left_out_labels: dict[tuple[int, str], dict[int, list[int]]] = {}
        self._report_folders(names)

    def _report_folders(self, names: list[str]) -> None:
        """Report truth that is not used."""
        for name, sequence in zip(self.names, self._sequences, strict=True):
            if sequence.gold is not None and sequence.markers is None and sequence.silver is None:
                truth = self.root / f"{name}_GT"
                message = (
                    "the masks are not used, because their identities are unknown without markers "
                    f"in TRA; add {truth / 'TRA'}"
                )
                self._dropped.remarks.append(Remark(IGNORED, str(truth / "SEG"), message))
        for folder in list_folder(self.root, ()).folders:
            match = re.fullmatch(r"(\d{2,3})_(GT|ST|RES)", folder)
            if match is None:
                continue
            path = self.root / folder
            if match[1] not in names and match[2] != "RES":
                self._dropped.orphans.append(path)
            elif match[2] == "RES" and not self.has_masks:
                message = (
                    "tracker results are not ground truth; to use them as masks, rename the "
                    f"folder to {match[1]}_GT{os.sep}TRA, its files to man_track000.tif and "
                    "man_track.txt, and set dataset.ctc_truth=track"
                )
                self._dropped.remarks.append(Remark(IGNORED, str(path), message))
        self.report(
            (self.root / name / file for name in names for file in os.listdir(self.root / name)),
            skip=lambda name: re.match(r"\d{2,3}_", name) is not None,
        )

    def _open_sequence(self, name: str) -> _Sequence:
        folder = self.root / name
        files = sort_files(list_folder(folder, TIFF_ENDINGS).files, folder)
        if not files:
            raise DataError(f"{folder} contains no TIFF frames", hint=f"expected {LAYOUT}")
        paths = [folder / file for file in files]
        frames = TiffSequence(paths, self._options)
        numbers = {_number(path): t for t, path in enumerate(paths)}
        gold, silver, markers = (
            _open_labels(self.root / f"{name}_{kind}", numbers, frames.size)
            for kind in ("GT/SEG", "ST/SEG", "GT/TRA")
        )
        tracking = self.root / f"{name}_GT" / "TRA"
        tracks = {}
        if markers is not None:
            tracks = read_tracks(tracking / "man_track.txt")
        ids = read_object_names(tracking / OBJECTS)
        return _Sequence([p.stem for p in paths], frames, gold, silver, markers, tracks, ids)

    def _truths(self, sequence: _Sequence) -> list[str]:
        """Return the kinds of masks to use for a sequence, the preferred one first."""
        kinds = ("gold", "silver") if self.truth == "auto" else (self.truth,)
        usable = {
            # Without markers the masks of different frames cannot be connected.
            "gold": sequence.gold is not None and sequence.markers is not None,
            "silver": sequence.silver is not None,
            "track": sequence.markers is not None,
        }
        return [kind for kind in kinds if usable[kind]]

    def num_frames(self, i: int) -> int:
        return self._sequences[i].frames.num_frames

    def frame_size(self, i: int) -> tuple[int, int]:
        return self._sequences[i].frames.size

    def frame_name(self, i: int, t: int) -> str:
        return self._sequences[i].names[t]

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        self.check_index(i, t)
        return self._sequences[i].frames.read(t)

    def object_names(self, i: int) -> Mapping[int, ObjectId]:
        return self._sequences[i].ids

    def tracks(self, i: int) -> dict[int, Track]:
        """Return the tracks of sequence ``i`` by label, as ``man_track.txt`` lists them."""
        return dict(self._sequences[i].tracks)

    def parents(self, i: int) -> dict[ObjectId, ObjectId]:
        sequence = self._sequences[i]
        named = ((n, track.parent) for n, track in sequence.tracks.items() if track.parent)
        links = ((sequence.ids.get(n, n), sequence.ids.get(p, p)) for n, p in named)
        # The parts of an object that was out of view are separate tracks with the same id.
        return {child: parent for child, parent in links if child != parent}

    def markers(self, i: int, t: int) -> np.ndarray | None:
        """Read the tracking markers of frame ``t``: ``[H,W]``; None if there are none."""
        return _read(self._sequences[i].markers, t, f"{self.name(i)}, frame {t}")

    def segmentation(self, i: int, t: int) -> np.ndarray | None:
        """Read the segmentation of frame ``t`` with its own labels: gold, or else silver.

        Returns:
            ``[H,W]``; None if the frame has none. Silver truth counts only if a sequence has no
            gold truth at all.
        """
        sequence = self._sequences[i]
        return _read(sequence.gold or sequence.silver, t, f"{self.name(i)}, frame {t}")

    def is_annotated(self, i: int, t: int) -> bool:
        sequence, kinds = self._sequences[i], self._truths(self._sequences[i])
        images = {"silver": sequence.silver, "track": sequence.markers}
        if any((labels := images.get(kind)) is not None and labels.has(t) for kind in kinds):
            return True
        # Whether gold truth covers all tracks is known only when it is read.
        gold = sequence.gold
        return "gold" in kinds and gold is not None and gold.has(t) and super().is_annotated(i, t)

    def read_labels(self, i: int, t: int) -> np.ndarray | None:
        sequence, where = self._sequences[i], f"{self.name(i)}, frame {t}"
        for kind in self._truths(sequence):
            if kind == "gold":
                labels = self._gold(i, t)
            else:
                labels = _read(sequence.silver if kind == "silver" else sequence.markers, t, where)
            if labels is not None:
                return labels
        return None

    def _gold(self, i: int, t: int) -> np.ndarray | None:
        """Return the gold masks with the labels of their tracks; None if not all have one."""
        sequence, where = self._sequences[i], f"{self.name(i)}, frame {t}"
        masks, markers = _read(sequence.gold, t, where), _read(sequence.markers, t, where)
        if masks is None or markers is None:
            return None
        labels, unknown, uncovered = labels_of_tracks(masks, markers)
        if missing := sorted(set(labels_in(labels)) - set(sequence.tracks)):
            raise DataError(
                f"video {visible_text(where)}: marker {missing[0]} has no line in man_track.txt",
                hint="add the track to the file",
            )
        text = "has no tracking marker, so its identity is unknown; add it to 01_GT/TRA"
        self._leave_out(i, t, text, unknown)
        silver = sequence.silver
        if silver is None or not silver.has(t) or self.truth == "gold":
            text = "is tracked but not segmented, so its frame is unannotated; segment it"
            self._leave_out(i, t, text, uncovered)
        return None if uncovered else labels

    def _leave_out(self, i: int, t: int, text: str, labels: list[int]) -> None:
        """Record labels that are left out; the first frame of a kind is logged at once."""
        if not labels:
            return
        frames = self._left_out_labels.setdefault((i, text), {})
        if not frames and parent_process() is None:
            logger.info("{}, frame {}: label {} {}", visible_text(self.name(i)), t, labels[0], text)
        frames[t] = labels

    def left_out_masks(self, i: int) -> list[LeftOut]:
        entries = []
        for (k, text), frames in self._left_out_labels.items():
            if k == i:
                t = min(frames)
                count = sum(map(len, frames.values()))
                where = f"video {visible_text(self.name(i))}, frame {self.frame_name(i, t)}"
                entries.append(LeftOut("masks", count, where, f"label {frames[t][0]} {text}"))
        return entries


def find_sequences(root: Path) -> list[str]:
    """Return the names of the sequences: folders of two or three digits, in order."""
    folders = list_folder(root, TIFF_ENDINGS).folders
    return sorted(name for name in folders if re.fullmatch(r"\d{2,3}", name))


def labels_of_tracks(
    masks: np.ndarray, markers: np.ndarray
) -> tuple[np.ndarray, list[int], list[int]]:
    """Relabel the masks of a segmentation with the tracking markers that they cover.

    Args:
        masks: ``[H,W]`` with any labels, 0 on the background.
        markers: ``[H,W]`` labels of the tracks.

    Returns:
        ``[H,W]`` masks with the labels of their tracks; labels of masks that cover no marker, which
        are 0 in the result; labels of markers that no mask covers.
    """
    overlaps = overlapping(masks, markers)
    areas: Counter[int] = Counter()
    for _, marker, count in overlaps:
        areas[marker] += count
    best: dict[int, tuple[int, int]] = {}  # mask -> overlap and marker
    for mask, marker, count in overlaps:
        if mask and marker and 2 * count > areas[marker]:
            best[mask] = max(best.get(mask, (0, 0)), (count, marker))
    labels = np.zeros_like(markers)
    for mask, (_, marker) in best.items():
        labels[masks == mask] = marker
    unknown = sorted({mask for mask, _, _ in overlaps if mask} - set(best))
    # A marker whose mask has the label of another marker is not shown, but not absent either.
    shown = {marker for _, marker in best.values()}
    return labels, unknown, sorted({marker for marker in areas if marker} - shown)


def _read(labels: TiffSequence | None, t: int, where: str) -> np.ndarray | None:
    if labels is None or not labels.has(t):
        return None
    image = integer_labels(labels.read(t), where)
    if image.shape != labels.size:  # the first image was checked when the sequence was opened
        raise DataError(
            f"{where}: the label image has the shape {list(image.shape)} instead of "
            f"{list(labels.size)}",
            hint="export masks at the size of their frames",
        )
    return image


def _open_labels(
    folder: Path, frames: Mapping[int, int], size: tuple[int, int]
) -> TiffSequence | None:
    """Open the label images of a sequence; None if there are none.

    Args:
        folder: folder of the images.
        frames: index of each frame by its number.
        size: rows and columns of the frames.
    """
    files = list_folder(folder, TIFF_ENDINGS).files if folder.is_dir() else []
    if not files:
        return None
    slots: list[Path | None] = [None] * len(frames)
    for path in (folder / name for name in sorted(files)):
        if re.search(r"_\d+_\d+$", path.stem):
            raise DataError(
                f"{path} segments one slice of a 3D frame, and 3D datasets are not supported",
                hint="project frames and masks to 2D first",
            )
        t = frames.get(_number(path))
        if t is None or slots[t] is not None:
            problem = "belongs to no frame" if t is None else f"and {slots[t]} share a frame"
            raise DataError(f"{path} {problem}", hint="number masks like their frames")
        slots[t] = path
    sequence = TiffSequence(slots)
    if sequence.size != size:
        raise DataError(
            f"{folder}: its images have {sequence.size[0]} rows and {sequence.size[1]} columns, "
            f"but the frames have {size[0]} and {size[1]}",
            hint="export masks at the size of their frames",
        )
    return sequence


def _number(path: Path) -> int:
    """Return the frame number at the end of a file name."""
    match = re.search(r"(\d{1,18})$", path.stem)
    if match is None:
        raise DataError(f"{path} has no frame number", hint="name frames t000.tif, t001.tif, ...")
    return int(match[1])
