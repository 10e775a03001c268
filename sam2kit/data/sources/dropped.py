"""Collect what of a data set is not read, and report it as remarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from sam2kit.data.sources.base import Remark
from sam2kit.data.sources.listing import (
    OTHER_PICTURES,
    SYSTEM_FOLDERS,
    VIDEO_ENDINGS,
    log_ignored,
)
from sam2kit.utils.paths import unpack_hint
from sam2kit.utils.text import visible_text

IGNORED, ORDER = "ignored", "order"


@dataclass
class DroppedFiles:
    """Collect files and directories that are not read, by what they are.

    Attributes:
        root: the data set.
        jpeg_masks: JPEG files in directories of masks.
        other_masks: further kinds of masks beside the frames.
        orphans: directories of masks without frames.
        subfolders: directories with pictures in directories of frames.
        loose_frames: frames beside directories of videos.
        unclear_orders: directories of frames whose order depends on how names are read.
        others: names of other files.
    """

    root: Path
    jpeg_masks: list[Path] = field(default_factory=list)
    other_masks: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    subfolders: list[Path] = field(default_factory=list)
    loose_frames: list[Path] = field(default_factory=list)
    unclear_orders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def add(self, folder: Path, names: Sequence[str]) -> None:
        """Add names in a directory that are neither frames nor masks."""
        self.others += [folder / name for name in names]

    def add_data(self, folder: Path, names: Sequence[str]) -> None:
        """Add those names in a directory that may be data: archives, videos and pictures."""
        endings = (*OTHER_PICTURES, *VIDEO_ENDINGS, *SYSTEM_FOLDERS)
        may_be_data = [n for n in names if n.lower().endswith(endings) or unpack_hint(n)]
        self.add(folder, [n for n in may_be_data if n[0] != "."])

    def report(self) -> list[Remark]:
        """Log what is not read, and return the remarks about what may be data."""
        remarks = [*self._remarks()]
        for remark in remarks:
            logger.warning("{}: {}", visible_text(remark.where), visible_text(remark.message))
        log_ignored(self.root, [visible_text(path.name) for path in self.others])
        return remarks

    def _remarks(self) -> Iterator[Remark]:
        groups = (
            (self.jpeg_masks, "JPEG file{} among the masks", "export masks as PNG"),
            (self.other_masks, "further mask{} beside the frames", "remove them if not needed"),
            (
                self.orphans,
                "folder{} of masks without frames",
                "add the frames or remove the masks",
            ),
            (
                self.subfolders,
                "folder{} of pictures in a folder of frames",
                "make each a video of its own, or delete what is not needed",
            ),
            (
                self.loose_frames,
                "picture{} beside the folders of videos",
                "move what is needed into a folder of its own",
            ),
            (self._ending(OTHER_PICTURES), "picture{} of another format", "convert to PNG"),
            (
                self._ending(VIDEO_ENDINGS),
                "video file{} among pictures",
                "move to another folder, and read it with dataset.type=files",
            ),
            (
                self._system(),
                "folder{} of the operating system or a file server",
                "delete what is not needed",
            ),
        )
        for paths, noun, fix in groups:
            if paths:
                yield _remark(IGNORED, paths, f"{_not_read(paths, noun)}; {fix}")
        if archives := [path for path in self.others if unpack_hint(path)]:
            command = unpack_hint(min(archives))
            yield _remark(IGNORED, archives, f"{_not_read(archives, 'archive{}')}; {command}")
        if paths := self.unclear_orders:
            yield _remark(
                ORDER,
                paths,
                "frame numbers are read as decimals (1.25 before 1.5); if the part after the point "
                "is a number of its own (1.5 before 1.25), rename the frames, for example to "
                "00000, 00001, ...",
            )

    def _ending(self, endings: tuple[str, ...]) -> list[Path]:
        return [
            path
            for path in self.others
            if path.name.lower().endswith(endings) and not path.name.startswith(".")
        ]

    def _system(self) -> list[Path]:
        return [path for path in self.others if path.name.lower() in SYSTEM_FOLDERS]


def _not_read(paths: Sequence[Path], noun: str) -> str:
    is_one = len(paths) == 1
    return f"{len(paths)} {noun.format('' if is_one else 's')} {'is' if is_one else 'are'} not read"


def _remark(kind: str, paths: Sequence[Path], message: str) -> Remark:
    return Remark(kind, str(min(paths)), message)
