"""Prompting objects of a video by hand in a notebook, with the model's answer to each click."""

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
from sam2kit.config.schema import PROMPT_TYPES, Config, DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.corrected import FILE_NAME
from sam2kit.models.checkpoints import create_sam2_model, load_model
from sam2kit.models.feature_cache import create_cache
from sam2kit.models.sam2 import SAM2Model
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import label_text, visible_text
from sam2kit.viz.overlays import ERROR_COLORS, PALETTE, draw_prompts, object_colors, overlay
from sam2kit.widgets.base import (
    PictureWidget,
    display_size,
    encode_jpeg,
    encode_png,
    error_text,
    video_number,
)
from sam2kit.widgets.prompt_session import Guess, PromptSession

MOST_NAMES = 1000  # of videos, sent to be chosen from; others are opened by open_video
REFRESH_SECONDS = 0.2  # between two pictures of a running propagation
THUMBNAIL = 160  # pixels, the longer side of a candidate
Masks = Mapping[ObjectId, np.ndarray | None]
"""``[H,W]`` bool by object; None: it has no mask on the frame."""


class PromptDebugger(PictureWidget):
    """Clicks, boxes and masks on a video's frames, and what the model makes of them at once.

    docs/widgets.md shows it. Everything a view can do is a method too, so a notebook without a
    front end can do the same; what they do is said at :class:`PromptSession`.

    Args:
        what: anything that :func:`~sam2kit.data.build.open_source` takes.
        model: a model, or what ``--model-checkpoint`` takes. None: ``run_dir/best.ckpt`` where it
            is, else the configuration's checkpoint, else ``nano``.
        video: its number or name.
        run_dir: where :meth:`save` and :meth:`append` write by default.
        recipes: what can be drawn, by name. None: each kind of prompt, ``official``, and that of
            the configuration.
        corrections: the file that :meth:`append` appends to; None: the configuration's
            ``dataset.corrections``, else ``run_dir/corrections.jsonl``.
        accelerator: as ``trainer.accelerator``.

    Raises:
        DataError, CheckpointError, ConfigError: about the video, the model or the device.
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
        self.model = _model(model, config, self.run_dir)
        self.model.feature_cache = create_cache(config or Config(), exact=True)
        self.device = pick_device(accelerator)
        self.recipes = dict(_recipes(config) if recipes is None else recipes)
        if corrections is None and config is not None:
            corrections = config.dataset.corrections
        if corrections is None and self.run_dir is not None:
            corrections = self.run_dir / FILE_NAME
        self.corrections = corrections
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # of the propagation that was begun last
        self._running = False
        super().__init__()
        self.open_video(video)

    # What a view or a notebook asks for.

    def open_video(self, video: int | str) -> None:
        """Begin another video; the prompts of this one are forgotten unless they were saved.

        Raises:
            DataError: no such video.
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
        """Show a frame; one beyond the ends is the last on that side."""
        self.frame = min(max(int(frame), 0), self.session.num_frames - 1)
        self._show()

    def select(self, index: int) -> None:
        """Make an object the one that is prompted, by its place in the list."""
        self.object = self.session.objects[index]
        self._show()

    def add_object(self, identity: ObjectId | None = None) -> None:
        """A further object, by its name or the first free number; it is the one prompted next."""
        self.object = self.session.add_object(identity or None)
        self._show()

    def click(self, x: int, y: int, positive: bool = True) -> None:
        self.session.click(self._object(), self.frame, x, y, positive)
        self._show()

    def box(self, x0: int, y0: int, x1: int, y1: int) -> None:
        self.session.box(self._object(), self.frame, (x0, y0, x1, y1))
        self._show()

    def brush(self, points: list[list[int]], radius: int, erase: bool = False) -> None:
        """Paint onto the object's mask, or off it, along a line of pixels."""
        o = self._object()
        mask = self.session.mask(o, self.frame)
        painted = np.zeros(self.session.size, np.uint8)
        if mask is not None:
            painted[mask] = 1
        line = np.array([*points, points[-1]], np.int32)[:, None]  # of one pixel a dot
        cv2.polylines(painted, [line], False, int(not erase), 2 * radius + 1)
        self.session.paint(o, self.frame, painted.astype(bool))
        self._show()

    def import_mask(self, file: str | Path | bytes) -> None:
        """A picture's pixels that are not 0 as the object's mask, of the frame's size."""
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
                flat = picture if picture.mode in ("P", "L", "1") else picture.convert("L")
                mask = np.array(flat) > 0
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"the mask cannot be read as a picture: {error}") from error
        self.session.paint(self._object(), self.frame, mask)
        self._show()

    def take_truth(self) -> None:
        """The true mask as the object's prompt."""
        mask = (self.session.truth(self.frame) or {}).get(self._object())
        if mask is None:
            raise DataError(f"the truth shows no object {self.object} on frame {self.frame}")
        self.session.paint(self._object(), self.frame, mask)
        self._show()

    def choose(self, candidate: int) -> None:
        self.session.choose(self._object(), self.frame, candidate)
        self._show()

    def dice(self, recipe: str | None = None, seed: int | None = None) -> None:
        """Prompt the object as a recipe of training draws it; every throw draws anew."""
        self.recipe = self.recipe if recipe is None else recipe
        if self.recipe not in self.recipes:
            raise DataError(f"no recipe {self.recipe!r}; there are {', '.join(self.recipes)}")
        self.seed = self.seed + 1 if seed is None else seed
        recipe_config = self.recipes[self.recipe]
        self.session.draw(self._object(), self.frame, recipe_config, self.seed)
        self._show()

    def undo(self) -> None:
        self.session.undo()
        self._show()

    def clear(self, everything: bool = False) -> None:
        """Forget the object's prompts on this frame, or all prompts."""
        self.session.clear(*((None, None) if everything else (self._object(), self.frame)))
        self._show()

    def view(self, mode: str) -> None:
        """``masks`` of all objects, or ``errors`` of the chosen one against the truth."""
        self.mode = mode
        self._show()

    def save(self, path: str | Path | None = None) -> Path:
        """Write the prompts as ``prompts.json``, which ``sam2kit track --prompts`` replays."""
        if path is None and self.run_dir is None:
            raise DataError("where to? Give a path to save(), or a run_dir to the widget")
        path = self.session.save(path or Path(self.run_dir or "") / "prompts.json")
        self._show(f"saved to {path}")
        return path

    def append(self, path: str | Path | None = None) -> Path:
        """Append this frame's masks to the corrections, which ``dataset.corrections`` reads."""
        path = path or self.corrections
        if path is None:
            raise DataError("where to? Give corrections= or a run_dir to the widget")
        objects = self.session.append(path, self.frame)
        names = ", ".join(map(str, objects))
        self._show(f"frame {self.frame} of object {names} appended to {path}")
        return Path(path)

    def propagate(self, start: int | None = None, wait: bool = True) -> None:
        """Track from the first prompt to the end, or from frame ``start`` as a quick look.

        Args:
            wait: until it is done; otherwise it goes on beside what else is done.
        """
        if not self.session.marks:
            raise DataError("no object is prompted yet; click on one")
        self.cancel()
        self.error, self._running, self._stop = "", True, threading.Event()
        self.total = self.session.num_frames - (
            min(t for _, t in self.session.marks) if start is None else start
        )
        self.done = 0
        arguments = (self.session.propagate(start), self._stop)
        self._thread = threading.Thread(target=self._propagate, args=arguments, daemon=True)
        self._thread.start()
        if wait:
            try:
                self.wait()
            except KeyboardInterrupt:
                self.cancel()
                raise
            if self.error:
                raise DataError(self.error)

    def cancel(self) -> None:
        """Stop a propagation after the frame in progress; what was tracked stays."""
        self._stop.set()

    def wait(self) -> None:
        """Until no propagation runs."""
        if self._thread is not None:
            self._thread.join()

    # Messages of a view; their fields are the arguments.
    on_open_video, on_go, on_select, on_add_object = open_video, go, select, add_object
    on_click, on_box, on_brush, on_take_truth = click, box, brush, take_truth
    on_choose, on_dice, on_undo, on_clear, on_view = choose, dice, undo, clear, view
    on_save, on_append, on_cancel = save, append, cancel

    def on_import(self, buffers: list[bytes]) -> None:
        self.import_mask(buffers[0])

    def on_propagate(self, start: int | None = None) -> None:
        self.propagate(start, wait=False)
        self._show()

    def _object(self) -> ObjectId:
        if self.object is None:
            self.object = self.session.add_object()
        return self.object

    def _propagate(self, frames: Iterator[int], stop: threading.Event) -> None:
        last_refresh = 0.0
        try:
            while True:
                with self.lock:  # clicks are answered between two frames
                    t = None if stop.is_set() else next(frames, None)
                    if t is None:
                        break
                    self.done += 1
                    if t == self.frame or time.monotonic() - last_refresh > REFRESH_SECONDS:
                        self._show(f"tracked {self.done} of {self.total} frames")
                        last_refresh = time.monotonic()
                time.sleep(0.001)  # or nobody else gets the lock
        except Exception as error:  # a thread's traceback goes nowhere a user looks
            with self.lock:
                self.error = error_text(error)
        with self.lock:
            if self._stop is stop:  # else another one has begun
                self._running = False
                verb = "stopped after" if stop.is_set() else "tracked"
                self._show(f"{verb} {self.done} frames")

    # What a view shows.

    def _show(self, message: str = "") -> None:
        """Send what has changed; with ``message`` as the last thing that was done."""
        session, t = self.session, self.frame
        with self.lock, self.hold_sync():
            if self._drawn != (session, t):
                self._frame = session.frame(t)
                self._drawn = session, t
                self.picture = encode_jpeg(self._frame, display_size(session.size))
            truth = session.truth(t)
            if self.object is None:
                self.object = next(iter(session.objects), None)
            masks = {o: session.mask(o, t) for o in session.objects}
            guess = None if self.object is None else session.guess(self.object, t)
            self.masks = self._draw_masks(masks, truth)
            self.candidates = [] if guess is None else self._thumbnails(guess)
            controls = self._controls(message)
            self.state = controls | self._describe(masks, guess) | {"annotated": truth is not None}
            self.seq += 1

    _drawn: tuple[Any, int] | None = None

    def _draw_masks(self, masks: Masks, truth: Masks | None) -> bytes:
        """Encode all masks; in the mode ``errors`` where the object's mask is right and wrong."""
        mask = None if self.object is None else masks.get(self.object)
        if self.object is None or self.mode != "errors" or truth is None or mask is None:
            return _palette_png(masks.values(), PALETTE, self.session.size)
        true = truth.get(self.object)
        true = np.zeros_like(mask) if true is None else true
        colors = np.array(list(ERROR_COLORS.values()), np.uint8)
        return _palette_png([mask & true, true & ~mask, mask & ~true], colors, self.session.size)

    def _thumbnails(self, guess: Guess) -> list[bytes]:
        """Encode the candidates of the chosen object as small JPEG pictures."""
        size = np.array(self._frame.shape[1::-1])
        small = tuple(int(n) for n in (size * THUMBNAIL / size.max()).round().clip(1))
        frame = cv2.resize(self._frame, small, interpolation=cv2.INTER_AREA)
        color = object_colors([self.session.objects.index(self._object())])
        pictures = []
        for mask in guess.candidates:
            shown = cv2.resize(mask.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST)
            pictures.append(encode_jpeg(overlay(frame, shown[None].astype(bool), color, 0.6)))
        return pictures

    def _describe(self, masks: Masks, guess: Guess | None) -> dict[str, Any]:
        """Describe the frame and its chosen object, all but the pictures."""
        session, t, o = self.session, self.frame, self.object
        mask = None if o is None else masks[o]
        candidates = () if guess is None or mask is None else guess.candidates
        chosen = [n for n, candidate in enumerate(candidates) if (candidate == mask).all()]
        tracked_j = [value for (who, _), value in session.j.items() if who == o]
        colors = object_colors(range(len(session.objects))).tolist()
        return {
            "video": session.i,
            "frame": t,
            "frames": session.num_frames,
            "size": list(session.size),
            "objects": [
                {"name": label_text(who), "color": color, "mask": masks[who] is not None}
                for who, color in zip(session.objects, colors, strict=True)
            ],
            "object": None if o is None else session.objects.index(o),
            "marks": [
                {"object": session.objects.index(who)}
                | {"points": mark.points, "labels": mark.labels, "box": mark.box}
                for (who, frame), mark in session.marks.items()
                if frame == t
            ],
            "prompted": sorted({frame for _, frame in session.marks}),
            "ious": [] if guess is None else list(guess.ious),
            "score": None if guess is None else guess.score,
            "chosen": chosen[0] if chosen else None,
            "j": None if mask is None or o is None else session.j_of(o, t, mask),
            "mean_j": float(np.mean(tracked_j)) if tracked_j else None,
            "stale": session.stale,
        }

    def _controls(self, message: str) -> dict[str, Any]:
        return {
            "videos": list(map(label_text, self.source.names[:MOST_NAMES])),
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
        """Return PNG bytes of the frame with the masks and prompts of all objects."""
        with self.lock:
            session, t, frame = self.session, self.frame, self._frame
            masks = {
                n: mask
                for n, o in enumerate(session.objects)
                if (mask := session.mask(o, t)) is not None
            }
            if masks:
                frame = overlay(frame, np.stack(list(masks.values())), object_colors([*masks]))
            for (_, number), mark in session.marks.items():
                if number == t:
                    box = None if mark.box is None else np.array(mark.box)
                    points = np.array(mark.points).reshape(-1, 2)
                    frame = draw_prompts(frame, points, np.array(mark.labels), box)
            size = display_size(session.size)
            return encode_png(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA))


def _palette_png(
    masks: Iterable[np.ndarray | None], colors: np.ndarray, size: tuple[int, int]
) -> bytes:
    """Encode masks ``[H,W]`` as a palette PNG, the later one on top; 0 is transparent.

    Args:
        colors: ``[N,3]`` uint8, repeated as needed.
        size: H and W.
    """
    labels = np.zeros(size, np.uint8)
    for n, mask in enumerate(masks):
        if mask is not None:
            labels[mask] = n % len(colors) + 1
    shown = cv2.resize(labels, display_size(size)[::-1], interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(shown)
    image.putpalette(bytes(3) + colors.tobytes())
    return encode_png(image, transparency=0, compress_level=1)


def _model(
    model: SAM2Model | str | Path | None, config: Config | None, run_dir: Path | None
) -> SAM2Model:
    if isinstance(model, SAM2Model):
        return model
    if model is None and run_dir is not None and (run_dir / "best.ckpt").exists():
        model = run_dir / "best.ckpt"
    if model is None and config is not None and config.model.checkpoint is not None:
        return create_sam2_model(config)
    return load_model(model or "nano")[1]


def _recipes(config: Config | None) -> dict[str, DatasetConfig]:
    configured = {} if config is None else {"this configuration": config.dataset}
    kinds = {k: replace(DatasetConfig(), prompt_types=[k]) for k in PROMPT_TYPES}
    return configured | kinds | {"official": load_config(overrides=["recipe=official"]).dataset}


Annotator = PromptDebugger  # a second name
