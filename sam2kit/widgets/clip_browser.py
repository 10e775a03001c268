"""A video to scrub and play, with masks of the truth and of any number of trackers over it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import traitlets

from sam2kit.config.schema import Config
from sam2kit.data.build import open_source
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.prompts.io import check_document, read_document, video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import label_text
from sam2kit.viz import overlays
from sam2kit.viz.plots import LINE_COLORS
from sam2kit.widgets.base import (
    PictureWidget,
    display_size,
    encode_jpeg,
    encode_png,
    error_text,
    video_number,
)
from sam2kit.widgets.layers import TRUTH, VideoLayers, label_planes, open_results, prompt_marks

CURVE_SECONDS = 0.1  # of measuring J between two frames that are asked for
SHEET_FRAMES, SHEET_WIDTH = 6, 300
_PROMPT_SPACE = 1024


class ClipBrowser(PictureWidget):
    """Scrub and play a video; truth and trackers side by side under a swipe; J over time below.

    Frames and masks are read when the view asks for them, and the view keeps a bounded number, so
    that the length of a video does not matter. Where there is no front end, it is a static picture.

    Args:
        what: a path, a configuration or a source, as for :func:`sam2kit.data.open_source`.
        video: the one to show first: its number or its name.
        predictions: name -> a folder of masks in DAVIS layout, or one that ``sam2kit evaluate``
            (stage 4) or ``sam2kit track`` has written.
        prompts: a ``prompts.json``; or prompts of the first video, whose objects are those of
            ``object_ids``.
        object_ids: the objects of a list of prompts by position; None: those of the video, in the
            order in which its frames show them.
        prompt_size: H and W of the frames in whose pixels a list of prompts is; None: the video's.
        fps: frames a second when playing; None: what the source says of itself, else 10.

    Attributes:
        video: the number of the video; change it by :meth:`show_video`.
        frame: the frame shown, from 0.
        left, right: the layers at the left and at the right of the swipe: ``truth``, a name out of
            ``predictions``, or nothing.
        swipe: where they meet, from 0 to 1.
        opacity: of the masks, from 0 to 1.
        hidden: positions in ``objects`` that are not shown.
        objects: what the objects are called, in the order in which they were met; like ``videos``
            and ``layer_labels`` shortened and free of characters that cannot be seen.

    Raises:
        DataError: nothing to show; a video that is not there, or of which a prediction or the
            prompts lack all masks.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    videos = traitlets.List(traitlets.Unicode()).tag(sync=True)
    video = traitlets.Int(-1, read_only=True).tag(sync=True)
    num_frames = traitlets.Int(1, read_only=True).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    layer_labels = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    objects = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    marks: traitlets.List = traitlets.List(read_only=True).tag(sync=True)
    colors = traitlets.Dict(read_only=True).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    left = traitlets.Unicode("").tag(sync=True)
    right = traitlets.Unicode("").tag(sync=True)
    swipe = traitlets.Float(0.5, min=0, max=1).tag(sync=True)
    opacity = traitlets.Float(0.5, min=0, max=1).tag(sync=True)
    hidden = traitlets.List(traitlets.Int()).tag(sync=True)
    show_masks = traitlets.Bool(True).tag(sync=True)
    show_prompts = traitlets.Bool(True).tag(sync=True)
    fps = traitlets.Float(10.0, min=0.1, max=120).tag(sync=True)

    def __init__(
        self,
        what: str | Path | Config | VideoSource,
        video: int | str = 0,
        predictions: Mapping[str, str | Path] | None = None,
        prompts: str | Path | Sequence[Prompt] | None = None,
        object_ids: Sequence[ObjectId] | None = None,
        prompt_size: tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> None:
        self.source = open_source(what)
        self._results = open_results(predictions or {})
        self._prompts, self._object_ids, self._prompt_size = prompts, object_ids, prompt_size
        self._document: Any = None
        if isinstance(prompts, (str, Path)):
            self._document = read_document(prompts)
            if not check_document(self._document, str(prompts), self.source.names)[1]:
                raise DataError(f"{prompts} has prompts for none of {self.source.names[:5]} ...")
        self._first = video_number(self.source, video)
        super().__init__(
            videos=list(map(label_text, self.source.names)),
            fps=fps or getattr(self.source, "fps", 10.0),
            frame=0,
        )
        points = {"positive": overlays.POSITIVE, "negative": overlays.NEGATIVE}
        lists = {"objects": overlays.PALETTE.tolist(), "lines": LINE_COLORS.tolist()}
        self.set_trait("colors", points | {"box": overlays.BOX} | lists)
        self.show_video(self._first)

    def show_video(self, video: int | str) -> None:
        """Show another video, from its first frame on.

        Raises:
            DataError: there is none, or a prediction has no masks of it; the old one stays.
        """
        i = video_number(self.source, video)
        with self.lock:
            shown = VideoLayers(self.source, i, self._results)
            marks = self._read_prompts(shown)
            self.shown = shown
            with self.hold_sync():
                count = {"num_frames": shown.num_frames, "layers": shown.names, "marks": marks}
                count["layer_labels"] = list(map(label_text, shown.names))
                for name, value in (count | {"video": i}).items():
                    self.set_trait(name, value)
                self.frame, self.hidden = 0, []
                if self.left not in shown.names or self.right not in shown.names:
                    self.left = (shown.names or [""])[0]
                    self.right = (shown.names or [""])[:2][-1]
                self._sync_objects()

    def _read_prompts(self, shown: VideoLayers) -> list[dict[str, Any]]:
        """The marks of the prompts, objects as positions in ``shown.objects``."""
        name, prompts = self.source.names[shown.i], self._prompts
        size = self.source.read_frame(shown.i, 0).shape[:2]
        identities: Sequence[ObjectId]
        if isinstance(prompts, (str, Path)):
            if not check_document(self._document, str(prompts), [name])[1]:
                return []
            document = self._document, str(prompts), name, shown.num_frames, _PROMPT_SPACE
            prompts, identities = video_prompts(*document)
            space = (_PROMPT_SPACE, _PROMPT_SPACE)
        elif prompts is None or shown.i != self._first:
            return []
        else:
            shown.masks(TRUTH, 0, size)
            identities = shown.objects if self._object_ids is None else self._object_ids
            space = self._prompt_size or size
        try:
            marks = prompt_marks(prompts, identities, size, space)
        except IndexError:
            raise DataError(
                f"prompts: they are of more objects than {list(identities)}; give object_ids, the "
                "identities by position"
            ) from None
        shown.meet([mark["object"] for mark in marks])
        return [mark | {"object": shown.objects.index(mark["object"])} for mark in marks]

    @traitlets.validate("frame")
    def _check_frame(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < self.num_frames:
            raise traitlets.TraitError(
                f"frame {proposal['value']} of a video with the frames 0 to {self.num_frames - 1}"
            )
        return proposal["value"]

    @traitlets.validate("left", "right")
    def _check_layer(self, proposal: Any) -> str:
        if proposal["value"] not in ("", *self.layers):
            raise traitlets.TraitError(f"{proposal['value']!r} is none of {self.layers}")
        return proposal["value"]

    def _sync_objects(self) -> None:
        self.set_trait("objects", [label_text(o) for o in self.shown.objects])

    def on_open(self, video: int) -> None:
        """The view asks for another video."""
        self.show_video(video)

    def on_frame(self, key: str, video: int, t: int, layers: list[str]) -> None:
        """Send frame ``t`` with the masks of some layers; ``key`` comes back with it.

        Errors of reading are sent with the frame, in ``faults``; the other layers are shown.
        """
        if video != self.video:
            return
        frame, masks, faults = self._read(t, layers)
        size = display_size(frame.shape[:2])
        planes, buffers = [], [encode_jpeg(frame, size)]
        for layer, found in masks.items():
            positions = {self.shown.objects.index(o): m for o, m in (found or {}).items()}
            for base, labels in label_planes(positions):
                if labels.shape != size:
                    labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
                planes.append({"layer": layer, "base": base})
                buffers.append(encode_png(labels, compress_level=1))
        missing = [layer for layer, found in masks.items() if found is None]
        self._sync_objects()
        content = {"key": key, "t": t, "size": frame.shape[:2], "planes": planes}
        self.send({"type": "frame", "missing": missing, "faults": faults} | content, buffers)

    def _read(self, t: int, layers: Sequence[str]) -> tuple[np.ndarray, dict, list[str]]:
        """Frame ``t``, the masks by layer, and what went wrong; a frame that fails is grey."""
        masks: dict[str, dict[ObjectId, np.ndarray] | None] = {}
        try:
            frame = self.source.read_frame(self.video, t)
        except DataError as error:
            return np.full((240, 320, 3), 128, np.uint8), masks, [error_text(error)]
        faults = []
        for layer in layers:
            try:
                masks[layer] = self.shown.masks(layer, t, frame.shape[:2])
            except DataError as error:
                faults.append(error_text(error))
        return frame, masks, faults

    def on_curves(self, video: int, first: int) -> None:
        """Send J from frame ``first`` on, as far as it is measured, or measure a little more."""
        if video != self.video:
            return
        shown = self.shown
        fault = ""
        if shown.done <= first:
            try:
                shown.advance(CURVE_SECONDS)
            except DataError as error:
                fault = error_text(error)  # the view stops asking
        part = slice(first, shown.done)

        def rounded(row: np.ndarray) -> list[float | None]:
            return [None if np.isnan(j) else round(j, 4) for j in row[part].tolist()]

        curves = {
            name: {shown.objects.index(o): rounded(row) for o, row in rows.items()}
            for name, rows in shown.J.items()
        }
        counted = {name: rows[part].tolist() for name, rows in shown.counted.items()}
        self._sync_objects()
        content = {"J": curves, "counted": counted, "annotated": shown.annotated[part].tolist()}
        place = {"type": "curves", "video": video, "first": first, "until": shown.done}
        self.send(content | place | {"fault": fault})

    def scores(self, name: str) -> dict[ObjectId, np.ndarray]:
        """J of a tracker on the video shown: by object ``[T]``, NaN on frames not annotated.

        Raises:
            DataError: masks that cannot be read.
            KeyError: no such tracker.
        """
        with self.lock:
            self.shown.advance(float("inf"))
            return {o: self.shown.curve(name, o) for o in self.shown.objects}

    def snapshot(self) -> bytes:
        """PNG bytes: a row for each of both layers, frames over the whole video and the one shown.

        Above a picture stand missing masks, or the mean J of the objects that are not hidden.
        """
        with self.lock:
            spread = overlays.evenly_spaced(self.num_frames, SHEET_FRAMES - 1)
            steps = sorted({self.frame, *spread})
            layers = list(dict.fromkeys([self.left, self.right]))
            rows: list[list[np.ndarray]] = [[] for _ in layers]
            captions: list[list[str]] = [[] for _ in layers]
            for t in steps:
                frame, masks, faults = self._read(t, [name for name in layers if name])
                if self.source.has_masks and not faults:
                    self.shown.measure(t, layers)
                heading = f"frame {t}" + " (shown)" * (t == self.frame) + "\n"
                for n, name in enumerate(layers):
                    rows[n].append(self._picture(frame, masks.get(name) or {}, t))
                    caption = "cannot be read" if faults else self._caption(name, t, masks)
                    captions[n].append((heading * (n == 0) + caption).strip())
            names, title = [name or "frame" for name in layers], self.source.names[self.video]
            texts, file = [text for row in captions for text in row], io.BytesIO()
            overlays.contact_sheet(rows, names, [], title, texts).savefig(file, format="png")
            return file.getvalue()

    def _picture(self, frame: np.ndarray, masks: Mapping[ObjectId, np.ndarray], t: int):
        scale = SHEET_WIDTH / frame.shape[1]
        size = SHEET_WIDTH, max(1, round(frame.shape[0] * scale))
        picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        positions = {self.shown.objects.index(o): mask for o, mask in masks.items()}
        shown = {
            n: cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            for n, mask in positions.items()
            if n not in self.hidden
        }
        if shown and self.show_masks:
            stack, colors = np.stack(list(shown.values())), overlays.object_colors([*shown])
            picture = overlays.overlay(picture, stack, colors, self.opacity)
        for mark in self.marks if self.show_prompts else []:
            if mark["frame"] == t and "points" in mark and mark["object"] not in self.hidden:
                points = (np.array(mark["points"]) + 0.5) * scale - 0.5
                picture = overlays.draw_prompts(picture, points, np.array(mark["labels"]))
        return picture

    def _caption(self, name: str, t: int, masks: Mapping[str, Any]) -> str:
        if name in masks and masks[name] is None:
            return "not annotated" if name == TRUTH else "no masks"
        if name not in self.shown.J:
            return ""
        objects = [o for n, o in enumerate(self.shown.objects) if n not in self.hidden]
        values = [self.shown.curve(name, o)[t] for o in objects]
        known = [v for v in values if not np.isnan(v)]
        return f"J {np.mean(known):.2f}" if known else ""
