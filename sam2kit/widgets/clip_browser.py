"""Browse videos with masks of the ground truth and of trackers."""

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
from sam2kit.prompts.geometry import rescale_points
from sam2kit.prompts.io import check_document, read_document, video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import DataError
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import label_text
from sam2kit.viz import overlays
from sam2kit.viz.plots import LINE_COLORS
from sam2kit.widgets.base import (
    ImageWidget,
    display_size,
    encode_jpeg,
    error_text,
    video_number,
    view_files,
)
from sam2kit.widgets.layers import TRUTH, VideoLayers, encode_planes, open_results, prompt_marks

CURVE_SECONDS = 0.1  # time to measure J per request, short enough not to delay frames
SHEET_FRAMES, SHEET_WIDTH = 6, 300  # static image: frames per row, pixels per frame
_PROMPT_SPACE = 1024  # size of the frames whose pixels are the units of prompts


class ClipBrowser(ImageWidget):
    """Show a video frame by frame, compare two mask layers with a swipe, and plot J over time.

    Frames and masks are read when the view requests them, and the view caches a bounded number, so
    videos can have any length. Without a front end, the widget is a static image.

    Args:
        what: a path, a configuration or a source; see :func:`sam2kit.data.open_source`.
        video: name or index of the first video.
        predictions: maps names to directories of masks in DAVIS layout, or to output directories of
            ``sam2kit evaluate`` (stage 4) or ``sam2kit track``. None (default): no predictions.
        prompts: a ``prompts.json``, or a list of prompts for the first video. None (default): no
            prompts.
        object_ids: identities of the objects in a list of prompts, by position. If None (default),
            the objects of the ground truth on the first frame.
        prompt_size: H and W of the frames whose pixels are the units of a list of prompts. If None
            (default), the size of the video's frames.
        fps: playback rate in frames per second, 0.1 to 120. If None (default), the rate of each
            video, or 10 if it has none.

    Attributes:
        video: index of the video; :meth:`show_video` changes it.
        frame: index of the current frame, from 0.
        left, right: layers to the left and right of the swipe: ``truth``, a name in
            ``predictions``, or "" for the frame only.
        swipe: position of the border between the layers, from 0 to 1.
        opacity: opacity of the masks, from 0 to 1.
        hidden: positions of hidden objects in ``objects``.
        objects: names of the objects in order of first appearance. As in ``videos`` and
            ``layer_labels``, long names are shortened and invisible characters are replaced.

    Raises:
        DataError: a video does not exist, or has no predictions or prompts.
    """

    _esm, _css = view_files("clip_browser")
    videos = traitlets.List(traitlets.Unicode()).tag(sync=True)
    video = traitlets.Int(-1, read_only=True).tag(sync=True)
    num_frames = traitlets.Int(1, read_only=True).tag(sync=True)
    # The number of each frame in its file, if the video is a part of the file; else empty.
    numbers: traitlets.List = traitlets.List(read_only=True).tag(sync=True)
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
    show_outlines = traitlets.Bool(True).tag(sync=True)
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
        self._results = open_results(predictions or {}, self.source.names)
        self._prompts, self._object_ids, self._prompt_size = prompts, object_ids, prompt_size
        self._document: Any = None
        if isinstance(prompts, (str, Path)):
            self._document = read_document(prompts)
            if not check_document(self._document, str(prompts), self.source.names)[1]:
                raise DataError(
                    f"{prompts} has no prompts for the videos {', '.join(self.source.names[:5])}",
                    key="prompts",
                    hint="pass the prompts.json of these videos",
                )
        self._follows_rate, self._rate = fps is None, 0.0
        self._first = video_number(self.source, video)
        super().__init__(
            videos=list(map(label_text, self.source.names)),
            frame=0,
            **({} if fps is None else {"fps": fps}),
        )
        colors = {"objects": overlays.PALETTE.tolist(), "lines": LINE_COLORS.tolist()}
        self.set_trait("colors", colors)
        self.show_video(self._first)

    def show_video(self, video: int | str) -> None:
        """Show another video, starting at its first frame.

        Args:
            video: its name or index.

        Raises:
            DataError: the video does not exist, or a prediction has no masks for it. The current
                video stays open.
        """
        i = video_number(self.source, video)
        with self.lock:
            # Do everything that can fail first, so that an error leaves the current video intact.
            video_layers = VideoLayers(self.source, i, self._results)
            marks = self._read_prompts(video_layers)
            self.video_layers = video_layers
            with self.hold_sync():
                traits = {
                    "num_frames": video_layers.num_frames,
                    "numbers": self._numbers(video_layers),
                    "layers": video_layers.names,
                    "marks": marks,
                }
                traits["layer_labels"] = list(map(label_text, video_layers.names))
                for name, value in (traits | {"video": i}).items():
                    self.set_trait(name, value)
                self.frame, self.hidden = 0, []
                # A rate that the user has set in the view is kept for other videos of this rate.
                if self._follows_rate and self._rate != (rate := self.source.frame_rate(i)):
                    self._rate, self.fps = rate, min(max(rate, 0.1), 120)
                # Keep the selected layers if they exist, otherwise show ground truth and first
                # tracker.
                if self.left not in video_layers.names or self.right not in video_layers.names:
                    self.left = (video_layers.names or [""])[0]
                    self.right = (video_layers.names or [""])[:2][-1]
                self._sync_objects()

    def _numbers(self, video_layers: VideoLayers) -> list[int]:
        steps = range(video_layers.num_frames)
        numbers = [self.source.frame_number(video_layers.i, t) for t in steps]
        return [] if numbers == list(steps) else numbers

    def _read_prompts(self, video_layers: VideoLayers) -> list[dict[str, Any]]:
        """Return the prompts as marks to draw, with objects as positions in ``objects``."""
        name, prompts = self.source.names[video_layers.i], self._prompts
        size = self.source.read_frame(video_layers.i, 0).shape[:2]
        identities: Sequence[ObjectId]
        if isinstance(prompts, (str, Path)):
            if not check_document(self._document, str(prompts), [name])[1]:
                return []
            document = self._document, str(prompts), name, video_layers.num_frames, _PROMPT_SPACE
            prompts, identities = video_prompts(*document, (size[0], size[1]))
            space = (_PROMPT_SPACE, _PROMPT_SPACE)
        elif prompts is None or video_layers.i != self._first:
            return []
        else:
            # Read the first frame's masks to add its objects to video_layers.objects.
            video_layers.masks(TRUTH, 0, size)
            identities = video_layers.objects if self._object_ids is None else self._object_ids
            space = self._prompt_size or size
        try:
            marks = prompt_marks(prompts, identities, size, space)
        except IndexError:
            raise DataError(
                key="object_ids",
                value=list(identities),
                expected="the identities of all objects in prompts",
                hint="pass one identity per object, by position",
            ) from None
        video_layers.add_objects([mark["object"] for mark in marks])
        return [mark | {"object": video_layers.objects.index(mark["object"])} for mark in marks]

    @traitlets.validate("frame")
    def _check_frame(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < self.num_frames:
            raise traitlets.TraitError(
                f"frame={proposal['value']} must be from 0 to {self.num_frames - 1}"
            )
        return proposal["value"]

    @traitlets.validate("left", "right")
    def _check_layer(self, proposal: Any) -> str:
        if proposal["value"] not in ("", *self.layers):
            raise traitlets.TraitError(
                f"{proposal['trait'].name}={proposal['value']!r} must be one of {self.layers} or ''"
            )
        return proposal["value"]

    def _sync_objects(self) -> None:
        self.set_trait("objects", [label_text(o) for o in self.video_layers.objects])

    def on_open(self, video: int) -> None:
        """Show the video selected in the view."""
        self.show_video(video)

    def on_frame(self, key: str, video: int, t: int, layers: list[str]) -> None:
        """Send frame ``t`` with the masks of the requested layers.

        Read errors are sent with the frame, in ``faults``, together with the other layers.

        Args:
            key: returned with the frame, so that the view can ignore outdated answers.
            video: index of the video that the view shows.
            t: index of the frame.
            layers: names of the layers.
        """
        if video != self.video:  # the video has changed since the request
            return
        frame, masks, faults = self._read(t, layers)
        size = display_size(frame.shape[:2])
        planes, buffers = [], [encode_jpeg(frame, size)]
        for layer, layer_masks in masks.items():
            positions = {
                self.video_layers.objects.index(o): m for o, m in (layer_masks or {}).items()
            }
            for plane in encode_planes(positions, size):
                buffers.append(plane.pop("labels"))
                planes.append({"layer": layer} | plane)
        missing = [layer for layer, layer_masks in masks.items() if layer_masks is None]
        self._sync_objects()
        content = {"key": key, "t": t, "size": frame.shape[:2], "planes": planes}
        self.send({"type": "frame", "missing": missing, "faults": faults} | content, buffers)

    def _read(self, t: int, layers: Sequence[str]) -> tuple[np.ndarray, dict, list[str]]:
        """Return frame ``t`` (grey if unreadable), the masks by layer, and error messages."""
        masks: dict[str, dict[ObjectId, np.ndarray] | None] = {}
        try:
            frame = self.source.read_frame(self.video, t)
        except DataError as error:
            return np.full((240, 320, 3), 128, np.uint8), masks, [error_text(error)]
        faults = []
        for layer in layers:
            try:
                masks[layer] = self.video_layers.masks(layer, t, frame.shape[:2])
            except DataError as error:
                faults.append(error_text(error))
        return frame, masks, faults

    def on_curves(self, video: int, first: int) -> None:
        """Send J of the frames from ``first``; if none is measured yet, measure some first.

        Args:
            video: index of the video that the view shows.
            first: index of the first frame whose J is missing in the view.
        """
        if video != self.video:
            return
        video_layers = self.video_layers
        fault = ""
        if video_layers.done <= first:
            try:
                video_layers.advance(CURVE_SECONDS)
            except DataError as error:
                fault = error_text(error)  # the view stops requesting
        part = slice(first, video_layers.done)

        def rounded(row: np.ndarray) -> list[float | None]:
            return [None if np.isnan(j) else round(j, 4) for j in row[part].tolist()]

        curves = {
            name: {video_layers.objects.index(o): rounded(row) for o, row in rows.items()}
            for name, rows in video_layers.J.items()
        }
        counted = {name: rows[part].tolist() for name, rows in video_layers.counted.items()}
        self._sync_objects()
        content = {
            "J": curves,
            "counted": counted,
            "annotated": video_layers.annotated[part].tolist(),
        }
        head = {"type": "curves", "video": video, "first": first, "until": video_layers.done}
        self.send(content | head | {"fault": fault})

    def scores(self, name: str) -> dict[ObjectId, np.ndarray]:
        """Return J of a tracker on the current video.

        Args:
            name: the tracker, a name in ``layers``.

        Returns:
            ``[T]`` by object, from 0 to 1, NaN on unannotated frames.

        Raises:
            DataError: masks cannot be read.
            KeyError: there is no such tracker.
        """
        with self.lock:
            self.video_layers.advance(float("inf"))
            return {o: self.video_layers.curve(name, o) for o in self.video_layers.objects}

    def snapshot(self) -> bytes:
        """Return a contact sheet as PNG bytes, with one row per layer.

        It shows frames from the whole video and the current frame. A frame's caption is the mean J
        of the visible objects, or states that there are no masks.
        """
        with self.lock:
            spaced = evenly_spaced(self.num_frames, SHEET_FRAMES - 1)
            steps = sorted({self.frame, *spaced})
            layers = list(dict.fromkeys([self.left, self.right]))
            rows: list[list[np.ndarray]] = [[] for _ in layers]
            captions: list[list[str]] = [[] for _ in layers]
            for t in steps:
                frame, masks, faults = self._read(t, [name for name in layers if name])
                if self.source.has_masks and not faults:
                    self.video_layers.measure(t, layers)
                number = self.numbers[t] if self.numbers else t
                heading = f"frame {number}" + " (shown)" * (t == self.frame) + "\n"
                for n, name in enumerate(layers):
                    rows[n].append(self._image(frame, masks.get(name) or {}, t))
                    caption = "unreadable" if faults else self._caption(name, t, masks)
                    captions[n].append((heading * (n == 0) + caption).strip())
            names, title = [name or "frame" for name in layers], self.source.names[self.video]
            texts, file = [text for row in captions for text in row], io.BytesIO()
            overlays.contact_sheet(rows, names, [], title, texts).savefig(file, format="png")
            return file.getvalue()

    def _image(self, frame: np.ndarray, masks: Mapping[ObjectId, np.ndarray], t: int):
        """Return a frame of the contact sheet with its masks and prompts."""
        size = SHEET_WIDTH, max(1, round(frame.shape[0] * SHEET_WIDTH / frame.shape[1]))
        image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        positions = {self.video_layers.objects.index(o): mask for o, mask in masks.items()}
        visible = {
            n: cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            for n, mask in positions.items()
            if n not in self.hidden
        }
        if visible and self.show_masks:
            stack, colors = np.stack(list(visible.values())), overlays.object_colors([*visible])
            image = overlays.overlay(image, stack, colors, self.opacity, self.show_outlines)
        for mark in self.marks if self.show_prompts else []:
            if mark["frame"] == t and "points" in mark and mark["object"] not in self.hidden:
                points = rescale_points(np.array(mark["points"]), frame.shape[:2], size[::-1])
                image = overlays.draw_prompts(image, points, np.array(mark["labels"]))
        return image

    def _caption(self, name: str, t: int, masks: Mapping[str, Any]) -> str:
        """Return the caption of a frame for one layer."""
        if name in masks and masks[name] is None:
            return "unannotated" if name == TRUTH else "no masks"
        if name not in self.video_layers.J:
            return ""
        objects = [o for n, o in enumerate(self.video_layers.objects) if n not in self.hidden]
        values = [self.video_layers.curve(name, o)[t] for o in objects]
        measured = [v for v in values if not np.isnan(v)]
        return f"J {np.mean(measured):.2f}" if measured else ""
