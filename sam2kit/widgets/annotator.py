"""Prompt the objects of a video interactively in a notebook."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import traitlets
from PIL import Image

from sam2kit.config.loading import load_config
from sam2kit.config.schema import PROMPT_TYPES, RANDOM, Config, DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.corrected import FILE_NAME
from sam2kit.models.checkpoints import create_sam2_model, load_model
from sam2kit.models.feature_cache import create_cache
from sam2kit.models.initial_weights import settle_size
from sam2kit.models.sam2 import SAM2Model
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import label_text, visible_text
from sam2kit.viz.overlays import ERROR_COLORS, PALETTE, draw_prompts, object_colors, overlay
from sam2kit.widgets.base import (
    ImageWidget,
    display_size,
    encode_jpeg,
    encode_png,
    error_text,
    video_number,
)
from sam2kit.widgets.prompt_session import Prediction, PromptSession

MAX_VIDEO_NAMES = 1000  # in the list of the view; open_video opens any video
REFRESH_SECONDS = 0.2  # minimum time between two updates of the view while tracking
THUMBNAIL_SIZE = 160  # longer side of the image of a candidate, in pixels
Masks = Mapping[ObjectId, np.ndarray | None]
"""``[H,W]`` bool by object; None for an object without a mask on the frame."""


class PromptDebugger(ImageWidget):
    """Prompt objects with clicks, boxes and masks, and show the model's prediction at once.

    docs/widgets.md describes the view. Every action of the view is also a method, so that scripts
    and notebooks without a front end can do the same. :class:`PromptSession` has the details.

    Args:
        what: a path, a configuration or a source, as for :func:`~sam2kit.data.build.open_source`.
        model: a model, or a value of ``--model-checkpoint``. None (default): ``run_dir/best.ckpt``
            if it exists, else the checkpoint of the configuration, else ``nano``.
        video: name or index of the first video.
        run_dir: the directory to which :meth:`save` and :meth:`append` write. None (default): they
            need a path.
        recipes: settings of :meth:`dice` by name. None (default): each kind of prompt, the
            recipe ``official``, and the dataset settings of the configuration.
        corrections: the file that :meth:`append` extends. None (default): ``dataset.corrections``
            of the configuration, else ``run_dir/corrections.jsonl``.
        accelerator: a value of ``trainer.accelerator``.

    Raises:
        DataError: the videos cannot be opened.
        CheckpointError: the model cannot be loaded.
        ConfigError: the device is not available.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    state = traitlets.Dict().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)
    masks = traitlets.Bytes().tag(sync=True)
    candidates: traitlets.List = traitlets.List().tag(sync=True)

    def __init__(
        self,
        what: str | Path | Config | VideoSource,
        model: SAM2Model | str | Path | None = None,
        video: int | str = 0,
        run_dir: str | Path | None = None,
        recipes: Mapping[str, DatasetConfig] | None = None,
        corrections: str | Path | None = None,
        accelerator: str = "auto",
    ) -> None:
        config = what if isinstance(what, Config) else None
        self.source = open_source(what)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.model = _load_model(model, config, self.run_dir)
        self.model.feature_cache = create_cache(config or Config(), exact=True)
        self.device = pick_device(accelerator)
        self.recipes = dict(_default_recipes(config) if recipes is None else recipes)
        if corrections is None and config is not None:
            corrections = config.dataset.corrections
        if corrections is None and self.run_dir is not None:
            corrections = self.run_dir / FILE_NAME
        self.corrections = corrections
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # stops the last propagation; each has its own event
        self._running = False
        super().__init__()
        self.open_video(video)

    # Actions of the view.

    def open_video(self, video: int | str) -> None:
        """Open another video; unsaved prompts of the current one are lost.

        Args:
            video: its name or index.

        Raises:
            DataError: there is no such video.
        """
        video = video_number(self.source, video)
        self.cancel()
        with self.lock:
            self.session = PromptSession(self.source, video, self.model, self.device)
            self.frame, self.mode, self.seed, self.message = 0, "masks", 0, ""
            self.done = self.total = 0
            self.recipe = next(iter(self.recipes), "")
            self.object: ObjectId | None = next(iter(self.session.objects), None)
            self._show()

    def go(self, frame: int) -> None:
        """Show a frame; an index outside the video is clipped."""
        self.frame = min(max(int(frame), 0), self.session.num_frames - 1)
        self._show()

    def select(self, index: int) -> None:
        """Select the object to prompt, by its index in the list of objects."""
        self.object = self.session.objects[index]
        self._show()

    def add_object(self, identity: ObjectId | None = None) -> None:
        """Add an object and select it.

        Args:
            identity: its name or number. None (default) or "": the next free number.
        """
        self.object = self.session.add_object(identity or None)
        self._show()

    def click(self, x: int, y: int, positive: bool = True) -> None:
        """Add a click on the selected object (positive) or off it, at a pixel of the frame."""
        self.session.click(self._selected_object(), self.frame, x, y, positive)
        self._show()

    def box(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Replace the prompt of the selected object by a box, given by two opposite corners."""
        self.session.box(self._selected_object(), self.frame, (x0, y0, x1, y1))
        self._show()

    def brush(self, points: list[list[int]], radius: int, erase: bool = False) -> None:
        """Paint onto the mask of the selected object, or erase from it.

        Args:
            points: x and y of the vertices of the stroke, at least one.
            radius: of the brush, in pixels of the frame.
            erase: remove the pixels under the stroke from the mask.
        """
        o = self._selected_object()
        mask = self.session.mask(o, self.frame)
        painted = np.zeros(self.session.size, np.uint8)
        if mask is not None:
            painted[mask] = 1
        # The last point is repeated: polylines draws nothing for a single point.
        line = np.array([*points, points[-1]], np.int32)[:, None]
        cv2.polylines(painted, [line], False, int(not erase), 2 * radius + 1)
        self.session.paint(o, self.frame, painted.astype(bool))
        self._show()

    def import_mask(self, file: str | Path | bytes) -> None:
        """Use the nonzero pixels of an image as the mask of the selected object.

        Args:
            file: an image file of the frame's size, or its bytes.

        Raises:
            DataError: the image cannot be read, is empty or has another size.
        """
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                # convert() would replace the values of a palette image by the luminance of their
                # colours, which can be 0.
                flat = image if image.mode in ("P", "L", "1") else image.convert("L")
                mask = np.array(flat) > 0
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"the mask cannot be read as an image: {error}",
                key="file",
                hint="choose a PNG of the frame's size",
            ) from error
        self.session.paint(self._selected_object(), self.frame, mask)
        self._show()

    def take_truth(self) -> None:
        """Use the ground truth mask as the prompt of the selected object.

        Raises:
            DataError: the ground truth has no mask of the object on this frame.
        """
        mask = (self.session.truth(self.frame) or {}).get(self._selected_object())
        if mask is None:
            raise DataError(
                f"the ground truth has no mask of object {self.object} on frame {self.frame}",
                hint="go to a frame on which it is annotated",
            )
        self.session.paint(self._selected_object(), self.frame, mask)
        self._show()

    def choose(self, candidate: int) -> None:
        """Use a candidate, counted from 0, as the mask of the selected object."""
        self.session.choose(self._selected_object(), self.frame, candidate)
        self._show()

    def dice(self, recipe: str | None = None, seed: int | None = None) -> None:
        """Prompt the selected object with a random prompt, drawn as in training.

        Args:
            recipe: one of ``recipes``. None (default): the recipe used last.
            seed: of the random draw. None (default): another one for each call.

        Raises:
            DataError: no such recipe, or the object is not visible on this frame.
        """
        self.recipe = self.recipe if recipe is None else recipe
        if self.recipe not in self.recipes:
            raise DataError(
                key="recipe",
                value=self.recipe,
                expected="the name of a recipe",
                hint=f"choose {', '.join(self.recipes)}",
            )
        self.seed = self.seed + 1 if seed is None else seed
        recipe_config = self.recipes[self.recipe]
        self.session.draw(self._selected_object(), self.frame, recipe_config, self.seed)
        self._show()

    def undo(self) -> None:
        """Revert the last edit of the prompts."""
        self.session.undo()
        self._show()

    def clear(self, everything: bool = False) -> None:
        """Remove the prompt of the selected object on this frame, or all prompts."""
        self.session.clear(*((None, None) if everything else (self._selected_object(), self.frame)))
        self._show()

    def view(self, mode: str) -> None:
        """Show the ``masks`` of all objects, or the ``errors`` of the selected one."""
        self.mode = mode
        self._show()

    def save(self, path: str | Path | None = None) -> Path:
        """Write the prompts to ``prompts.json``, the input of ``sam2kit track --prompts``.

        Args:
            path: None (default): ``run_dir/prompts.json``.

        Returns:
            The path of the file.

        Raises:
            DataError: there is no path, no prompt, or the file cannot be written.
        """
        if path is None and self.run_dir is None:
            raise DataError("no path to save to", hint="give path, or run_dir to the widget")
        path = self.session.save(path or Path(self.run_dir or "") / "prompts.json")
        self._show(f"saved {path}")
        return path

    def append(self, path: str | Path | None = None) -> Path:
        """Append this frame's masks to a file of corrections, the value of ``dataset.corrections``.

        Args:
            path: None (default): the file given to the widget.

        Returns:
            The path of the file.

        Raises:
            DataError: there is no path, no mask, or the file cannot be written.
        """
        path = path or self.corrections
        if path is None:
            raise DataError(
                "no file to append to", hint="give path, or corrections or run_dir to the widget"
            )
        objects = self.session.append(path, self.frame)
        names = ", ".join(map(str, objects))
        self._show(f"appended frame {self.frame} (objects: {names}) to {path}")
        return Path(path)

    def propagate(self, start: int | None = None, wait: bool = True) -> None:
        """Track all objects.

        Args:
            start: begin at this frame, as a quick preview. None (default): at the first prompt.
            wait: return when tracking has ended (default); False: track in the background.

        Raises:
            DataError: no object has a prompt, or a frame cannot be tracked.
        """
        if not self.session.prompts:
            raise DataError("no object has a prompt", hint="click on an object first")
        # A propagation that still runs ends after its current frame: it has its own stop event.
        self.cancel()
        self.error, self._running, self._stop = "", True, threading.Event()
        self.total = self.session.num_frames - (
            min(t for _, t in self.session.prompts) if start is None else start
        )
        self.done = 0
        arguments = (self.session.propagate(start), self._stop)
        self._thread = threading.Thread(target=self._propagate, args=arguments, daemon=True)
        self._thread.start()
        if wait:
            try:
                self.wait()
            except KeyboardInterrupt:  # interrupting the cell stops the thread too
                self.cancel()
                raise
            if self.error:
                raise DataError(self.error, hint="correct the cause and propagate again")

    def cancel(self) -> None:
        """Stop tracking after the current frame; the masks tracked so far remain."""
        self._stop.set()

    def wait(self) -> None:
        """Wait until tracking has ended."""
        if self._thread is not None:
            self._thread.join()

    # Handlers of the view's messages; the fields of a message are the arguments.
    on_open_video, on_go, on_select, on_add_object = open_video, go, select, add_object
    on_click, on_box, on_brush, on_take_truth = click, box, brush, take_truth
    on_choose, on_dice, on_undo, on_clear, on_view = choose, dice, undo, clear, view
    on_save, on_append, on_cancel = save, append, cancel

    def on_import(self, buffers: list[bytes]) -> None:
        """Import the mask that the view has read from a file."""
        self.import_mask(buffers[0])

    def on_propagate(self, start: int | None = None) -> None:
        """Track in the background, so that the view can cancel it."""
        self.propagate(start, wait=False)
        self._show()

    def _selected_object(self) -> ObjectId:
        if self.object is None:
            self.object = self.session.add_object()
        return self.object

    def _propagate(self, frames: Iterator[int], stop: threading.Event) -> None:
        last_refresh = 0.0
        try:
            while True:
                with self.lock:  # released after each frame, so that messages are handled between
                    t = None if stop.is_set() else next(frames, None)
                    if t is None:
                        break
                    self.done += 1
                    if t == self.frame or time.monotonic() - last_refresh > REFRESH_SECONDS:
                        self._show(f"tracked {self.done} of {self.total} frames")
                        last_refresh = time.monotonic()
                # A lock is not fair: without a pause this thread would take it again at once.
                time.sleep(0.001)
        except Exception as error:
            # Python prints the traceback of a thread where users do not see it.
            with self.lock:
                self.error = error_text(error)
        with self.lock:
            if self._stop is stop:  # otherwise another propagation has started
                self._running = False
                verb = "stopped after" if stop.is_set() else "tracked"
                self._show(f"{verb} {self.done} frames")

    # State of the view.

    def _show(self, message: str = "") -> None:
        """Send the current state to the view.

        Args:
            message: the status line; "" (default) clears it.
        """
        session, t = self.session, self.frame
        with self.lock, self.hold_sync():
            # The frame is read and encoded only when it changes, not on every click.
            if self._sent_frame != (session, t):
                self._frame = session.frame(t)
                self._sent_frame = session, t
                self.picture = encode_jpeg(self._frame, display_size(session.size))
            truth = session.truth(t)
            if self.object is None:
                self.object = next(iter(session.objects), None)
            masks = {o: session.mask(o, t) for o in session.objects}
            prediction = None if self.object is None else session.prediction(self.object, t)
            self.masks = self._draw_masks(masks, truth)
            self.candidates = [] if prediction is None else self._thumbnails(prediction)
            controls = self._control_state(message)
            self.state = (
                controls | self._frame_state(masks, prediction) | {"annotated": truth is not None}
            )
            self.seq += 1

    _sent_frame: tuple[Any, int] | None = None

    def _draw_masks(self, masks: Masks, truth: Masks | None) -> bytes:
        """Encode all masks, or in mode ``errors`` the errors of the selected object.

        Without a mask or a ground truth to compare, mode ``errors`` shows the masks too.
        """
        mask = None if self.object is None else masks.get(self.object)
        if self.object is None or self.mode != "errors" or truth is None or mask is None:
            return _palette_png(masks.values(), PALETTE, self.session.size)
        truth_mask = truth.get(self.object)
        truth_mask = np.zeros_like(mask) if truth_mask is None else truth_mask
        colors = np.array(list(ERROR_COLORS.values()), np.uint8)
        return _palette_png(
            [mask & truth_mask, truth_mask & ~mask, mask & ~truth_mask], colors, self.session.size
        )

    def _thumbnails(self, prediction: Prediction) -> list[bytes]:
        """Encode the candidates of the selected object as small JPEG images."""
        size = np.array(self._frame.shape[1::-1])
        small = tuple(int(n) for n in (size * THUMBNAIL_SIZE / size.max()).round().clip(1))
        frame = cv2.resize(self._frame, small, interpolation=cv2.INTER_AREA)
        color = object_colors([self.session.objects.index(self._selected_object())])
        images = []
        for mask in prediction.candidates:
            resized = cv2.resize(mask.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST)
            images.append(encode_jpeg(overlay(frame, resized[None].astype(bool), color, 0.6)))
        return images

    def _frame_state(self, masks: Masks, prediction: Prediction | None) -> dict[str, Any]:
        """Return the state of the frame and of the selected object, without images."""
        session, t, o = self.session, self.frame, self.object
        mask = None if o is None else masks[o]
        candidates = () if prediction is None or mask is None else prediction.candidates
        chosen = [n for n, candidate in enumerate(candidates) if (candidate == mask).all()]
        tracked_j = [value for (identity, _), value in session.j.items() if identity == o]
        colors = object_colors(range(len(session.objects))).tolist()
        return {
            "video": session.i,
            "frame": t,
            "frames": session.num_frames,
            "size": list(session.size),
            "objects": [
                {"name": label_text(name), "color": color, "mask": masks[name] is not None}
                for name, color in zip(session.objects, colors, strict=True)
            ],
            "object": None if o is None else session.objects.index(o),
            "marks": [
                {"object": session.objects.index(identity)}
                | {"points": prompt.points, "labels": prompt.labels, "box": prompt.box}
                for (identity, frame), prompt in session.prompts.items()
                if frame == t
            ],
            "prompted": sorted({frame for _, frame in session.prompts}),
            "ious": [] if prediction is None else list(prediction.ious),
            "score": None if prediction is None else prediction.score,
            "chosen": chosen[0] if chosen else None,
            "j": None if mask is None or o is None else session.j_of(o, t, mask),
            "mean_j": float(np.mean(tracked_j)) if tracked_j else None,
            "stale": session.stale,
        }

    def _control_state(self, message: str) -> dict[str, Any]:
        """Return the state of the controls and of a running propagation."""
        return {
            "videos": list(map(label_text, self.source.names[:MAX_VIDEO_NAMES])),
            "mode": self.mode,
            "recipes": list(self.recipes),
            "recipe": self.recipe,
            "seed": self.seed,
            "running": self._running,
            "done": self.done,
            "total": self.total,
            "message": visible_text(message),
        }

    def snapshot(self) -> bytes:
        """Return the frame with the masks and prompts of all objects as PNG bytes."""
        with self.lock:
            session, t, frame = self.session, self.frame, self._frame
            masks = {
                n: mask
                for n, o in enumerate(session.objects)
                if (mask := session.mask(o, t)) is not None
            }
            if masks:
                frame = overlay(frame, np.stack(list(masks.values())), object_colors([*masks]))
            for (_, prompt_frame), prompt in session.prompts.items():
                if prompt_frame == t:
                    box = None if prompt.box is None else np.array(prompt.box)
                    points = np.array(prompt.points).reshape(-1, 2)
                    frame = draw_prompts(frame, points, np.array(prompt.labels), box)
            size = display_size(session.size)
            return encode_png(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA))


def _palette_png(
    masks: Iterable[np.ndarray | None], colors: np.ndarray, size: tuple[int, int]
) -> bytes:
    """Encode masks as a palette PNG, later masks on top; value 0 is transparent.

    Args:
        masks: ``[H,W]`` bool each; None: no mask, but its colour is skipped.
        colors: ``[N,3]`` uint8, repeated if there are more masks.
        size: H and W of the masks.
    """
    labels = np.zeros(size, np.uint8)
    for n, mask in enumerate(masks):
        if mask is not None:
            labels[mask] = n % len(colors) + 1
    resized = cv2.resize(labels, display_size(size)[::-1], interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(resized)
    image.putpalette(bytes(3) + colors.tobytes())
    return encode_png(image, transparency=0, compress_level=1)


def _load_model(
    model: SAM2Model | str | Path | None, config: Config | None, run_dir: Path | None
) -> SAM2Model:
    """Return the given model, or load the default that :class:`PromptDebugger` documents."""
    if isinstance(model, SAM2Model):
        return model
    if model is None and run_dir is not None and (run_dir / "best.ckpt").exists():
        model = run_dir / "best.ckpt"
    if model is None and config is not None and config.model.checkpoint not in (None, RANDOM):
        return create_sam2_model(settle_size(config))
    return load_model(model or "nano")[1]


def _default_recipes(config: Config | None) -> dict[str, DatasetConfig]:
    """Return the recipes of :meth:`PromptDebugger.dice` by name, the default one first."""
    configured = {} if config is None else {"this configuration": config.dataset}
    kinds = {k: replace(DatasetConfig(), prompt_types=[k]) for k in PROMPT_TYPES}
    return configured | kinds | {"official": load_config(overrides=["recipe=official"]).dataset}


Annotator = PromptDebugger  # alias, for users who only annotate
