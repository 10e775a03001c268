"""Annotate objects in videos interactively in a notebook."""

from __future__ import annotations

import shlex
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import traitlets
from loguru import logger

from sam2kit.config.loading import load_config
from sam2kit.config.schema import PROMPT_TYPES, RANDOM, Config, DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.pictures import opened
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.corrected import FILE_NAME
from sam2kit.data.training_set import TrainingSetSummary
from sam2kit.models.checkpoints import (
    HUB_CHECKPOINTS,
    SHIPPED_CHECKPOINTS,
    create_sam2_model,
    load_model,
)
from sam2kit.models.feature_cache import create_cache
from sam2kit.models.initial_weights import resolve_size
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.tracking.results import find_video
from sam2kit.tracking.training_set_job import annotated_part, train_command
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import label_text, plural, visible_text
from sam2kit.viz.overlays import ERROR_COLORS, contrasting_palette, draw_prompts, overlay
from sam2kit.widgets.base import (
    ImageWidget,
    display_size,
    encode_jpeg,
    encode_png,
    error_text,
    video_number,
    view_files,
)
from sam2kit.widgets.check_list import FrameToCheck
from sam2kit.widgets.layers import encode_planes
from sam2kit.widgets.prompt_session import (
    Direction,
    Prediction,
    PromptSession,
    without_generated_objects,
)

MAX_VIDEO_NAMES = 1000  # maximum number of names in the view's list; open_video opens any video
MAX_CHECKS = 20  # maximum number of frames in the list of frames to check
REFRESH_SECONDS = 0.2  # minimum time between two updates of the view while tracking
THUMBNAIL_SIZE = 120  # longer side of a candidate's image, in pixels
MADE_BY = {  # display texts of mask provenances
    "click": "prompted",
    "propagated": "tracked",
    "truth": "ground truth",
}
Masks = Mapping[ObjectId, np.ndarray | None]
"""``[H,W]`` bool by object; None for an object without a mask on the frame."""
Color = tuple[int, int, int]


class Annotator(ImageWidget):
    """Annotate objects with clicks, boxes and masks, track them, and create a training set.

    docs/widgets.md describes the view. Every action is also available as a method, for scripts and
    for notebooks without a front end. :class:`PromptSession` documents the state of one video.
    Annotations are saved to disk at every change and loaded when a video is opened.

    Args:
        what: a path, a configuration or a source; see :func:`~sam2kit.data.build.open_source`.
        model: a model, or a value of ``--model-checkpoint``. If None (default),
            ``run_dir/best.ckpt`` if it exists, otherwise the checkpoint of the configuration,
            otherwise ``nano``.
        video: name or index of the first video.
        run_dir: directory for annotations and the output of :meth:`save`, :meth:`append` and
            :meth:`make_training_set`. If None (default), annotations are lost when the kernel
            stops, and these methods require a path.
        recipes: settings of :meth:`random_prompt` by name. If None (default), each prompt type, the
            recipe ``official``, and the dataset settings of the configuration.
        corrections: file to which :meth:`append` writes. If None (default), ``dataset.corrections``
            of the configuration, otherwise ``run_dir/corrections.jsonl``.
        accelerator, devices: values of ``trainer.accelerator`` and ``trainer.devices`` that select
            one device. If None (default), the values of the configuration, otherwise the first GPU
            or the CPU.

    Raises:
        DataError: the videos cannot be opened.
        CheckpointError: the model cannot be loaded.
        ConfigError: the device is not available.
    """

    _esm, _css = view_files("annotator")
    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    objects: traitlets.List = traitlets.List().tag(sync=True)
    timeline = traitlets.Dict().tag(sync=True)
    checks: traitlets.List = traitlets.List().tag(sync=True)
    report: traitlets.List = traitlets.List().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)
    planes: traitlets.List = traitlets.List().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    candidates: traitlets.List = traitlets.List().tag(sync=True)
    session: PromptSession
    frame: int

    def __init__(
        self,
        what: str | Path | Config | VideoSource,
        model: SAM2Model | str | Path | None = None,
        video: int | str = 0,
        run_dir: str | Path | None = None,
        recipes: Mapping[str, DatasetConfig] | None = None,
        corrections: str | Path | None = None,
        accelerator: str | None = None,
        devices: str | None = None,
    ) -> None:
        config = what if isinstance(what, Config) else None
        self.source = open_source(what)
        self._folder = _folder_text(what)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._config = config or Config()
        trainer = self._config.trainer
        self.device = pick_device(accelerator or trainer.accelerator, devices or trainer.devices)
        self.model, self._model_text = _load_model(model, config, self.run_dir)
        self.model.feature_cache = create_cache(self._config, exact=True)
        self.recipes = dict(_default_recipes(config) if recipes is None else recipes)
        if corrections is None and config is not None:
            corrections = config.dataset.corrections
        if corrections is None and self.run_dir is not None:
            corrections = self.run_dir / FILE_NAME
        self.corrections = corrections
        if self.run_dir is None:
            # Annotations must survive switching between videos; the directory is removed together
            # with the widget.
            self._temporary = tempfile.TemporaryDirectory(prefix="sam2kit-annotations-")
        folder = self._temporary.name if self.run_dir is None else self.run_dir / "annotations"
        self.store = AnnotationStore(folder)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # stops the latest propagation; each has its own event
        self._steps: Generator[Any, None, None] | None = None
        self._running = self._searches = False
        self._run, self.every = 0, 1
        self._last_frames: dict[str, int] = {}  # last shown frame, by video
        self._opened: dict[str, tuple[VideoSource, int]] = {}  # sources of annotated videos
        super().__init__()
        self.open_video(video)

    # Videos, folders and models.

    def open_video(self, video: int | str) -> None:
        """Open another video and load its annotations.

        Args:
            video: its name or index.

        Raises:
            DataError: the video does not exist, or its annotations belong to a video of another
                length or size. The current video stays open.
        """
        self._open(self.source, video_number(self.source, video), self.model, self._model_text)

    def open_folder(self, folder: str | Path | Config | VideoSource, video: int | str = 0) -> None:
        """Open other videos; annotations of the current videos stay on disk.

        Args:
            folder: a path, a configuration or a source.
            video: name or index of the first video.

        Raises:
            DataError: the videos cannot be opened. The current video stays open.
        """
        source = open_source(folder)
        self._open(source, video_number(source, video), self.model, self._model_text)
        self._folder = _folder_text(folder)
        self._show()

    def open_model(self, model: SAM2Model | str | Path) -> None:
        """Use another model for new prompts and tracking; existing masks are kept.

        Args:
            model: a model, or the name of a model, a run directory or a checkpoint.

        Raises:
            CheckpointError: the model cannot be loaded. The current model is kept.
        """
        loaded, text = _load_model(model, None, None)
        loaded.feature_cache = create_cache(self._config, exact=True)
        frame = self.frame
        self._open(self.source, self._video, loaded, text)
        self.go(frame)

    def _open(self, source: VideoSource, i: int, model: SAM2Model, text: str) -> None:
        with self.lock:
            self.cancel()
            if self._steps is not None:
                self._steps.close()  # save tracked masks before they are loaded again
            name = text or None
            session = PromptSession(source, i, model, self.device, self.store, name)
            if self._sent_frame is not None:
                self._last_frames[self.session.video] = self.frame
                if (source, i) != (self.source, self._video):
                    self.report = []  # about the video that was open
            self.source, self.session, self.model, self._model_text = source, session, model, text
            self._video, self._running = i, False
            self._opened[session.video] = session.source, session.i
            self.frame = min(self._last_frames.get(session.video, 0), session.num_frames - 1)
            self.mode, self.seed = "masks", 0
            self._viewport: tuple[int, int, int, int] | None = None
            self.done = self.total = 0
            self.recipe = next(iter(self.recipes), "")
            self.object: ObjectId | None = next(iter(session.objects), None)
            self._palette = contrasting_palette(session.frame(self.frame))
            self._checks: list[FrameToCheck] = []
            self._visited: set[tuple[ObjectId, int]] = set()  # of the frames to check
            self._proposal_frame = 0
            self._show()

    # Frames and objects.

    def go(self, frame: int) -> None:
        """Show a frame; the index is clipped to the video."""
        self.frame = min(max(int(frame), 0), self.session.num_frames - 1)
        self._show()

    def select(self, index: int) -> None:
        """Select the object to prompt, by its index in the list of objects."""
        if index < len(self.session.objects):
            self.object = self.session.objects[index]
        self._show()

    def add_object(self, identity: ObjectId | None = None) -> None:
        """Add an object and select it.

        Args:
            identity: name or number of the object. If None (default) or "", the next free number.
        """
        self.object = self.session.add_object(identity or None)
        self._show()

    def rename(self, index: int, name: str) -> None:
        """Change the display name of an object; its number in masks and files does not change."""
        self.session.rename(self.session.objects[index], name)
        self._show()

    def recolor(self, index: int, color: str | Sequence[int]) -> None:
        """Change the colour of an object.

        Args:
            index: index of the object in the list of objects.
            color: red, green and blue from 0 to 255, or ``#rrggbb``.
        """
        self.session.recolor(self.session.objects[index], _rgb(color))
        self._show()

    def set_hidden(self, index: int, hidden: bool = True) -> None:
        """Hide or show an object; its masks are kept."""
        self.session.set_hidden(self.session.objects[index], hidden)
        self._show()

    def hide_all(self, hidden: bool = True) -> None:
        """Hide or show all objects."""
        for o in self.session.objects:
            self.session.set_hidden(o, hidden)
        self._show()

    def delete_object(self, index: int) -> None:
        """Delete an object with its prompts and masks, or discard a proposal; undo reverts it."""
        count = len(self.session.objects)
        if index >= count:
            self.session.proposals.take([index - count])
        else:
            self.session.delete_object(self.session.objects[index])
        self._show()

    # Prompts.

    def click(self, x: int, y: int, positive: bool = True) -> None:
        """Add a positive or negative click for the selected object at a pixel of the frame."""
        self.session.click(self._selected_object(), self.frame, x, y, positive)
        self._show()

    def box(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Replace the prompt of the selected object with a box given by two opposite corners."""
        self.session.box(self._selected_object(), self.frame, (x0, y0, x1, y1))
        self._show()

    def brush(self, points: list[list[int]], radius: int, erase: bool = False) -> None:
        """Add to the mask of the selected object with a brush, or erase from it.

        Args:
            points: x and y of the stroke's vertices, at least one.
            radius: radius of the brush in pixels of the frame.
            erase: whether to remove the pixels under the stroke.
        """
        o = self._selected_object()
        mask = self.session.mask(o, self.frame)
        painted = np.zeros(self.session.size, np.uint8)
        if mask is not None:
            painted[mask] = 1
        # Repeat the last point, because polylines draws nothing for a single point.
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
        with opened(file, where="the mask" if isinstance(file, bytes) else file) as image:
            # convert() would replace the values of a palette image with the luminance of their
            # colours, which may be 0.
            flat = image if image.mode in ("P", "L", "1") else image.convert("L")
            mask = np.array(flat) > 0
        self.session.paint(self._selected_object(), self.frame, mask, "imported")
        self._show()

    def import_labels(self, file: str | Path | bytes) -> None:
        """Add the objects of a label image as mask prompts on the current frame.

        Args:
            file: an image (PNG, TIFF) of the frame's size, or its bytes. Pixel values are object
                numbers; 0 is background.

        Raises:
            DataError: the image cannot be read, is empty or has another size.
        """
        added = self.session.add_label_image(self.frame, file)
        self.object = added[0] if added else self.object
        self._show(f"Imported {plural(len(added), 'object')}")

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
        self.session.paint(self._selected_object(), self.frame, mask, "truth")
        self._show()

    def choose(self, candidate: int) -> None:
        """Use a candidate, counted from 0, as the mask of the selected object."""
        self.session.choose(self._selected_object(), self.frame, candidate)
        self._show()

    def random_prompt(self, recipe: str | None = None, seed: int | None = None) -> None:
        """Prompt the selected object with a random prompt, sampled as in training.

        Args:
            recipe: a name in ``recipes``. If None (default), the most recently used recipe.
            seed: random seed. If None (default), a different one for each call.

        Raises:
            DataError: the recipe does not exist, or the object is not visible on this frame.
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

    dice = random_prompt  # alias for notebooks of earlier versions

    def undo(self) -> None:
        """Revert the last edit of the video."""
        self.session.undo()
        self._show()

    def redo(self) -> None:
        """Redo the most recently reverted edit."""
        self.session.redo()
        self._show()

    def clear(self, everything: bool = False) -> None:
        """Remove the selected object's prompt on this frame, or all prompts."""
        self.session.clear(*((None, None) if everything else (self._selected_object(), self.frame)))
        self._show()

    def view(self, mode: str) -> None:
        """Set the display mode: ``masks`` of all objects, or ``errors`` of the selected one."""
        self.mode = mode
        self._show()

    def save(self, path: str | Path | None = None) -> Path:
        """Write the prompts to ``prompts.json``, the input of ``sam2kit track --prompts``.

        Args:
            path: the file. If None (default), ``run_dir/prompts.json``.

        Returns:
            The path of the file.

        Raises:
            DataError: there is no path or no prompt, or the file cannot be written.
        """
        if path is None and self.run_dir is None:
            raise DataError(
                "no path to save to", hint="pass path, or create the widget with run_dir"
            )
        path = self.session.save(path or Path(self.run_dir or "") / "prompts.json")
        self._show(f"Saved {path}")
        return path

    def append(self, path: str | Path | None = None) -> Path:
        """Append this frame's masks to a corrections file, for ``dataset.corrections``.

        Args:
            path: the file. If None (default), the widget's ``corrections``.

        Returns:
            The path of the file.

        Raises:
            DataError: there is no path or no mask, or the file cannot be written.
        """
        path = path or self.corrections
        if path is None:
            raise DataError(
                "no file to append to",
                hint="pass path, or create the widget with corrections or run_dir",
            )
        objects = self.session.append(path, self.frame)
        names = ", ".join(map(str, objects))
        self._show(
            f"Appended frame {self.frame} (objects: {names}) to {path}; train with "
            f"{shlex.quote(f'dataset.corrections={path}')}"
        )
        return Path(path)

    def propagate(
        self,
        start: int | None = None,
        wait: bool = True,
        *,
        end: int | None = None,
        direction: Direction = "forward",
    ) -> None:
        """Track all objects from their prompts.

        Args:
            start: first frame of the range. If None (default), the first prompted frame, or the
                start of the video for the other directions.
            wait: whether to wait until tracking has finished, or to track in the background.
            end: last frame of the range. If None (default), the end of the video, or the last
                prompted frame for ``backward``.
            direction: ``forward``, ``backward`` or ``both``.

        Raises:
            DataError: no object has a prompt, the range is invalid, or a frame cannot be tracked.
        """
        total = len(self.session.propagation_frames(start, end, direction))
        self._searches = False
        self._begin(self.session.propagate(start, end, direction), total, wait)

    def _begin(self, steps: Iterable[Any], total: int, wait: bool = True) -> None:
        """Run a generator in a background thread that the view can cancel."""
        # A running propagation has its own stop event and ends after its current frame.
        self.cancel()
        self.error, self._running, self._stop = "", True, threading.Event()
        self._run, self.done, self.total = self._run + 1, 0, total
        self._steps = steps if isinstance(steps, Generator) else None
        self._thread = threading.Thread(target=self._work, args=(steps, self._stop), daemon=True)
        self._thread.start()
        if not wait:
            self._show()
            return
        try:
            self.wait()
        except KeyboardInterrupt:  # interrupting the cell also stops the thread
            self.cancel()
            raise
        if self.error:
            raise DataError(self.error, hint="fix the cause and track again")

    def cancel(self) -> None:
        """Stop tracking after the current frame and keep the masks tracked so far."""
        self._stop.set()

    def wait(self) -> None:
        """Wait until tracking has finished."""
        if self._thread is not None:
            self._thread.join()

    # Results.

    def accept(self, frames: int | Sequence[int] | None = None) -> None:
        """Accept the masks of frames as ground truth, or revert the acceptance.

        Args:
            frames: one or more frames to accept. If None (default), toggle the acceptance of the
                current frame.
        """
        if frames is None and self.frame in self.session.accepted:
            self.session.unaccept([self.frame])
        else:
            chosen = self.frame if frames is None else frames
            self.session.accept([chosen] if isinstance(chosen, int) else list(chosen))
        self._show()

    def accept_all(self, every: int = 1) -> None:
        """Accept every N-th tracked frame, and all frames with prompts.

        Frames with prompts include the corrected ones, from which a model learns most.

        Args:
            every: accept every N-th tracked frame; 1 (default) accepts all.

        Raises:
            DataError: nothing has been tracked or prompted.
        """
        self.every = max(1, every)  # restored in the view after a reload
        timeline = self.session.timeline()
        frames = sorted({*timeline["tracked"], *timeline["prompted"]})[:: self.every]
        frames = sorted({*frames, *timeline["prompted"]})
        if not frames:
            raise DataError("no frame has masks to accept", hint="prompt an object and track it")
        self.session.accept(frames)
        self._show(f"Accepted {plural(len(frames), 'frame')}")

    def next_check(self) -> None:
        """Go to the next frame to check, the worst first, and select its object.

        Raises:
            DataError: there is no frame to check.
        """
        if not self._checks:
            raise DataError("there is no frame to check", hint="track the objects first")
        new = [n for n, c in enumerate(self._checks) if (c.object, c.frame) not in self._visited]
        if not new:  # all have been visited, so start over
            self._visited.clear()
        self.go_to_check(new[0] if new else 0)

    def go_to_check(self, index: int) -> None:
        """Go to a frame to check, by its index in the list."""
        check = self._checks[index]
        self._visited.add((check.object, check.frame))
        self.object = check.object
        self.go(check.frame)

    def propose(self, wait: bool = True) -> None:
        """Segment this frame automatically, and list the masks as proposals to keep or discard.

        Args:
            wait: whether to wait until the search has finished, or to search in the background.
        """
        self._proposal_frame = self.frame
        self._searches = True
        self._begin(self.session.propose_masks(self.frame), 100, wait)

    def accept_proposals(self, indices: Sequence[int] | None = None) -> None:
        """Keep proposals as objects.

        Args:
            indices: indices in the list of objects, where proposals follow the objects. If None
                (default), all proposals.
        """
        count = len(self.session.objects)
        chosen = None if indices is None else [n - count for n in indices]
        added = self.session.accept_proposals(chosen)
        self.object = added[0] if added else self.object
        self._show(f"Kept {plural(len(added), 'proposal')}")

    def discard_proposals(self) -> None:
        """Remove the remaining proposals."""
        self.session.proposals.take()
        self._show()

    def make_training_set(self, folder: str | Path | None = None) -> Path:
        """Write the accepted frames of all annotated videos to a training set.

        Frames that are already in the directory are replaced if their masks have changed.

        Args:
            folder: the directory. If None (default) or "", ``run_dir/training_set``.

        Returns:
            The directory, for use as ``--data-path``.

        Raises:
            DataError: no frame is accepted, or there is no directory to write to.
            ConfigError: the directory cannot be written, or contains something else.
        """
        if not folder and self.run_dir is None:
            raise DataError(
                "no directory for the training set",
                hint="pass folder, or create the widget with run_dir",
            )
        folder = Path(folder).expanduser() if folder else Path(self.run_dir or "") / "training_set"
        lines, written, missing = [], 0, []
        for video in self.store.videos():
            try:
                part = annotated_part(self.store, video, self._find_source)
            except FileNotFoundError:
                missing.append(video)
                continue
            if part is not None:
                written += 1
                lines.append(f"{label_text(video)}: {_counts(part.add_to(folder))}")
        if missing:
            names = ", ".join(map(label_text, missing))
            lines.append(f"Skipped, because their directory is unknown (open it first): {names}")
        if not written:
            raise DataError(
                "; ".join(["no frame is accepted", *lines]),
                hint="track, check the masks, and accept frames (key a, or Accept all)",
            )
        lines.insert(0, f"Training set of {plural(written, 'video')} in {visible_text(folder)}")
        self.report = [{"text": line, "command": False} for line in lines]
        # Train from the model that was used for annotation.
        command = train_command(folder, written, self._model_text or None, self.model.image_size)
        self.report = [*self.report, {"text": visible_text(command), "command": True}]
        self._show()
        return folder

    def _find_source(self, video: str, path: str) -> tuple[VideoSource, int]:
        """Return the source and index of a video that was annotated at a path.

        Raises:
            FileNotFoundError: the video is not open, and the path is unknown or does not exist.
        """
        if video in self._opened:
            return self._opened[video]
        if video in self.source.names:
            return without_generated_objects(self.source, self.source.names.index(video))
        if not path or not Path(path).exists():
            raise FileNotFoundError(path)
        return find_video(open_source(path), video)

    def close_report(self) -> None:
        """Close the message about the last training set."""
        self.report = []

    # Handlers of the view's messages, with the message's fields as arguments.
    on_open_video, on_go, on_select, on_add_object = open_video, go, select, add_object
    on_rename, on_recolor, on_set_hidden, on_hide_all = rename, recolor, set_hidden, hide_all
    on_delete_object, on_click, on_box, on_brush = delete_object, click, box, brush
    on_take_truth, on_choose, on_random_prompt = take_truth, choose, random_prompt
    on_undo, on_redo, on_clear, on_view, on_save, on_append = undo, redo, clear, view, save, append
    on_cancel, on_accept, on_accept_all = cancel, accept, accept_all
    on_next_check, on_go_to_check, on_close_report = next_check, go_to_check, close_report
    on_accept_proposals, on_discard_proposals = accept_proposals, discard_proposals

    def on_ready(self) -> None:
        """Send the current state to a new view."""
        super().on_ready()
        self._show()

    def on_open_folder(self, folder: str) -> None:
        """Open the path entered in the view."""
        self.open_folder(Path(folder).expanduser())

    def on_open_model(self, model: str) -> None:
        """Load the model entered in the view."""
        self.open_model(model)

    def on_import(self, buffers: list[bytes]) -> None:
        """Import a mask file that the view has read."""
        self.import_mask(buffers[0])

    def on_import_labels(self, buffers: list[bytes]) -> None:
        """Import a label image that the view has read."""
        self.import_labels(buffers[0])

    def on_propagate(
        self, direction: Direction = "forward", start: int | None = None, end: int | None = None
    ) -> None:
        """Track in the background, so that the view can cancel it."""
        self.propagate(start, wait=False, end=end, direction=direction)

    def on_propose(self) -> None:
        """Find objects in the background, so that the view can cancel it."""
        self.propose(wait=False)

    def on_make_training_set(self, folder: str = "") -> None:
        """Write the training set to the directory entered in the view."""
        self.make_training_set(folder)

    def on_viewport(self, rect: list[int] | None) -> None:
        """Send the visible part of the frame in full resolution; None means the whole frame."""
        self._viewport = None if rect is None else (rect[0], rect[1], rect[2], rect[3])
        self._show()

    def _selected_object(self) -> ObjectId:
        if self.object is None:
            self.object = self.session.add_object()
        return self.object

    def _proposed(self) -> list[np.ndarray]:
        """Return the masks of the proposals, if their frame is shown."""
        if self.frame != self._proposal_frame:
            return []
        return [proposal.mask for proposal in self.session.proposals.items]

    def _work(self, steps: Iterable[Any], stop: threading.Event) -> None:
        """Run the steps of tracking (frames) or of automatic segmentation (fractions of work)."""
        iterator, last_refresh = iter(steps), 0.0
        try:
            while True:
                with self.lock:  # released after each frame, so that messages can be handled
                    step = None if stop.is_set() else next(iterator, None)
                    if step is None:
                        if isinstance(steps, Generator):
                            steps.close()  # saves the tracked masks
                        break
                    self.done = round(100 * step) if self._searches else self.done + 1
                    if step == self.frame or time.monotonic() - last_refresh > REFRESH_SECONDS:
                        self._show(self._progress())
                        last_refresh = time.monotonic()
                # Locks are not fair: without a pause, this thread would reacquire it immediately.
                time.sleep(0.001)
        except Exception as error:
            # Python prints tracebacks of threads where users do not see them.
            logger.opt(exception=error).debug("error while tracking")
            with self.lock:
                self.error = error_text(error)
        with self.lock:
            if self._stop is stop:  # otherwise another propagation has started
                self._running = False
                self._show(self._progress())

    def _progress(self) -> str:
        if self._searches:
            return f"Found {plural(len(self.session.proposals.items), 'object')} to keep or discard"
        verb = "Stopped after" if self._stop.is_set() else "Tracked"
        return f"{verb} {plural(self.done, 'frame')}"

    # State of the view.

    def _show(self, message: str = "") -> None:
        """Send changed state to the view.

        Args:
            message: text of the status line; "" (default) clears it.
        """
        session, t = self.session, self.frame
        with self.lock, self.hold_sync():
            # Read and encode the frame only when it changes, not on every click.
            if self._sent_frame != (session, t):
                self._frame = session.frame(t)
                self._sent_frame = session, t
                self.picture = encode_jpeg(self._frame, display_size(session.size))
            truth = session.truth(t)
            if self.object not in session.objects:
                self.object = next(iter(session.objects), None)
            masks: dict[ObjectId, np.ndarray | None] = {
                o: session.mask(o, t) for o in session.objects
            }
            prediction = None if self.object is None else session.prediction(self.object, t)
            self._send_masks(masks, truth)
            self.candidates = [] if prediction is None else self._thumbnails(prediction)
            self.setup = self._setup_state()
            self.objects = self._object_states(masks)
            self._send_time()
            self.state = self._control_state(message) | self._frame_state(masks, prediction, truth)
            self.seq += 1

    _sent_frame: tuple[Any, int] | None = None
    _video: int  # index in the source

    def _send_masks(self, masks: Masks, truth: Masks | None) -> None:
        """Send the masks of all objects or, in mode ``errors``, the errors of the selected one.

        If there is no mask or ground truth to compare, mode ``errors`` shows masks, too.
        """
        mask = None if self.object is None else masks.get(self.object)
        self._errors = self.mode == "errors" and truth is not None and mask is not None
        if truth is not None and mask is not None and self._errors:
            truth_mask = truth.get(self.object) if self.object is not None else None
            truth_mask = np.zeros_like(mask) if truth_mask is None else truth_mask
            shown = [mask & truth_mask, truth_mask & ~mask, mask & ~truth_mask]
            positions = dict(enumerate(shown))
        else:
            listed = [*masks.values(), *self._proposed()]
            positions = {n: m for n, m in enumerate(listed) if m is not None}
        self.planes = encode_planes(positions, display_size(self.session.size))
        if self._viewport is None:
            self.detail = {}
            return
        x0, y0, x1, y1 = self._viewport
        size = display_size((y1 - y0, x1 - x0))
        part = {n: m[y0:y1, x0:x1] for n, m in positions.items()}
        self.detail = {
            "rect": [x0, y0, x1, y1],
            "picture": encode_jpeg(self._frame[y0:y1, x0:x1], size),
            "planes": encode_planes(part, size),
        }

    def _thumbnails(self, prediction: Prediction) -> list[bytes]:
        """Encode the selected object's candidates with their surroundings as small JPEGs."""
        if not len(prediction.candidates):
            return []
        rows, columns = _surroundings(np.asarray(prediction.candidates.any(0)))
        frame = self._frame[rows, columns]
        size = np.array(frame.shape[1::-1])
        small = tuple(int(n) for n in (size * THUMBNAIL_SIZE / size.max()).round().clip(1))
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        index = self.session.objects.index(self._selected_object())
        color = np.array([self._color(index)], np.uint8)
        images = []
        for mask in prediction.candidates:
            part = mask[rows, columns].astype(np.uint8)
            resized = cv2.resize(part, small, interpolation=cv2.INTER_NEAREST)
            images.append(encode_jpeg(overlay(frame, resized[None].astype(bool), color, 0.6)))
        return images

    def _color(self, index: int) -> Color:
        """Return an object's colour: the user's choice, or one that contrasts with the video."""
        color: Any = self._palette[index % len(self._palette)]
        if index < len(self.session.objects):
            color = self.session.colors.get(self.session.objects[index], color)
        red, green, blue = (int(v) for v in color)
        return red, green, blue

    def _object_states(self, masks: Masks) -> list[dict[str, Any]]:
        """Return the rows of the list of objects: objects, then proposals."""
        session = self.session
        rows = [
            {
                "name": label_text(session.names.get(o, o)),
                "color": list(self._color(n)),
                "hidden": o in session.hidden,
                "mask": masks.get(o) is not None,
                "proposal": False,
            }
            for n, o in enumerate(session.objects)
        ]
        for n in range(len(self._proposed())):
            color = list(self._color(len(rows)))
            rows.append({"name": f"proposal {n + 1}", "color": color, "proposal": True})
            rows[-1] |= {"hidden": False, "mask": True}
        return rows

    def _send_time(self) -> None:
        """Send the markers of the timeline and the frames to check."""
        timeline = self.session.timeline()
        self.timeline = {name: _ranges(frames) for name, frames in timeline.items()}
        if not self._running:  # with thousands of masks, it would take too long on every frame
            self._checks = self.session.frames_to_check(MAX_CHECKS)
        self.checks = [
            {
                "frame": check.frame,
                "name": label_text(self.session.names.get(check.object, check.object)),
                "reason": visible_text(check.reason),
            }
            for check in self._checks
        ]

    def _frame_state(
        self, masks: Masks, prediction: Prediction | None, truth: Masks | None
    ) -> dict[str, Any]:
        """Return the state of the frame and of the selected object, without images."""
        session, t, o = self.session, self.frame, self.object
        mask = None if o is None else masks[o]
        candidates = () if prediction is None or mask is None else prediction.candidates
        chosen = [n for n, candidate in enumerate(candidates) if (candidate == mask).all()]
        tracked_j = [value for (identity, _), value in session.j.items() if identity == o]
        accepted = t in session.accepted
        badges = {"accepted": accepted, "annotated": truth is not None}
        return {
            "key": f"{id(self.source)} {self._video}",
            "video": self._video,
            "frame": t,
            "frames": session.num_frames,
            "size": list(session.size),
            "object": None if o is None else session.objects.index(o),
            "marks": [
                {"object": session.objects.index(identity)}
                | {"points": prompt.points, "labels": prompt.labels, "box": prompt.box}
                for (identity, frame), prompt in session.prompts.items()
                if frame == t
            ],
            "ious": [] if prediction is None else list(prediction.ious),
            "score": None if prediction is None else prediction.score,
            "chosen": chosen[0] if chosen else None,
            "j": None if mask is None or o is None else session.j_of(o, t, mask),
            "mean_j": float(np.mean(tracked_j)) if tracked_j else None,
            "provenance": "" if mask is None or o is None else self._provenance(o, t),
            "stale": session.stale,
            "annotated": truth is not None,
            "accepted": accepted,
            "badges": [text for text, applies in badges.items() if applies],
            "errors": [list(c) for c in ERROR_COLORS.values()] if self._errors else None,
        }

    def _provenance(self, o: ObjectId, t: int) -> str:
        """Return a text on how the mask of an object was made."""
        made = self.session.provenance(o, t) or ""
        model = self.session.mask_model(o, t)
        text = MADE_BY.get(made, made)
        return visible_text(f"{text} by {label_text(model)}" if model else text)

    def _control_state(self, message: str) -> dict[str, Any]:
        """Return the state of the controls and of a running propagation."""
        proposals = len(self.session.proposals.items)
        return {
            "proposals": [proposals, self._proposal_frame] if proposals else None,
            "mode": self.mode,
            "recipe": self.recipe,
            "seed": self.seed,
            "every": self.every,
            "can_undo": self.session.can_undo,
            "can_redo": self.session.can_redo,
            "running": self._running,
            "run": self._run,
            "done": self.done,
            "total": self.total,
            "unit": "%" if self._searches else "frames",
            "message": visible_text(message),
        }

    def _setup_state(self) -> dict[str, Any]:
        """Return the available videos, models and recipes, which rarely change."""
        target = "" if self.run_dir is None else str(self.run_dir / "training_set")
        return {
            "videos": list(map(label_text, self.source.names[:MAX_VIDEO_NAMES])),
            "more_videos": max(0, len(self.source.names) - MAX_VIDEO_NAMES),
            "kept": visible_text(
                "Annotations are lost when the kernel stops; pass run_dir to keep them"
                if self.run_dir is None
                else f"Annotations are saved in {self.store.folder}"
            ),
            "has_truth": self.session.source.has_masks,
            "folder": visible_text(self._folder),
            "model": visible_text(self._model_text),
            "models": self._model_names(),
            "recipes": list(map(label_text, self.recipes)),
            "training_set": visible_text(target),
        }

    def _model_names(self) -> list[str]:
        """Return suggestions for models: run directories beside this one, and released models."""
        runs = []
        if self.run_dir is not None:
            paths = self.run_dir.glob("*.ckpt"), self.run_dir.parent.glob("*/best.ckpt")
            runs = [str(path) for group in paths for path in sorted(group)]
        return [*map(visible_text, runs), *SHIPPED_CHECKPOINTS, *HUB_CHECKPOINTS]

    def snapshot(self) -> bytes:
        """Return the frame with the masks and prompts of all objects as PNG bytes."""
        with self.lock:
            session, t, frame = self.session, self.frame, self._frame
            shown = [o for o in session.objects if o not in session.hidden]
            masks = {o: mask for o in shown if (mask := session.mask(o, t)) is not None}
            if masks:
                colors = [self._color(session.objects.index(o)) for o in masks]
                frame = overlay(frame, np.stack(list(masks.values())), np.array(colors, np.uint8))
            for (o, prompt_frame), prompt in session.prompts.items():
                if prompt_frame == t and o in shown:
                    box = None if prompt.box is None else np.array(prompt.box)
                    points = np.array(prompt.points).reshape(-1, 2)
                    frame = draw_prompts(frame, points, np.array(prompt.labels), box)
            size = display_size(session.size)
            return encode_png(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA))


def _surroundings(mask: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns around a mask, with a margin and at least a quarter of the frame."""
    slices = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(1 - axis))
        first, last = (inside[0], inside[-1]) if len(inside) else (0, length - 1)
        half = max(0.7 * (last - first + 1), length / 8)
        center = (first + last + 1) / 2
        start = int(min(max(center - half, 0), length - 1))
        slices.append(slice(start, max(start + 1, int(min(center + half, length)))))
    return slices[0], slices[1]


def _ranges(frames: Iterable[int]) -> list[list[int]]:
    """Return sorted frames as inclusive ranges [first, last]."""
    ranges: list[list[int]] = []
    for t in sorted(frames):
        if ranges and t == ranges[-1][1] + 1:
            ranges[-1][1] = t
        else:
            ranges.append([t, t])
    return ranges


def _rgb(color: str | Sequence[int]) -> Color:
    """Convert a colour (three values or ``#rrggbb``) to three values from 0 to 255."""
    try:
        values = bytes.fromhex(color.removeprefix("#")) if isinstance(color, str) else bytes(color)
        red, green, blue = values
    except (TypeError, ValueError):
        raise DataError(
            key="color",
            value=color,
            expected="red, green and blue from 0 to 255, or #rrggbb",
            hint="for example #56b4e9",
        ) from None
    return red, green, blue


def _counts(summary: TrainingSetSummary) -> str:
    """Return the numbers of frames that were added to a training set, in words."""
    if not summary.overlaps:
        return summary.counts
    frames = plural(summary.overlaps, "frame")
    return f"{summary.counts}; masks overlap on {frames}, where the smaller object is in front"


def _folder_text(what: str | Path | Config | VideoSource) -> str:
    """Return the path of the opened data for display, or "" for a custom source."""
    if isinstance(what, Config):
        return str(what.dataset.annotation_file or what.dataset.data_path or "")
    return "" if isinstance(what, VideoSource) else str(what)


def _load_model(
    model: SAM2Model | str | Path | None, config: Config | None, run_dir: Path | None
) -> tuple[SAM2Model, str]:
    """Load the model, or the default documented in :class:`Annotator`; return it with its name."""
    if isinstance(model, SAM2Model):
        return model, ""
    if model is None and run_dir is not None and (run_dir / "best.ckpt").exists():
        model = run_dir / "best.ckpt"
    if model is None and config is not None and config.model.checkpoint not in (None, RANDOM):
        return create_sam2_model(resolve_size(config)), str(config.model.checkpoint)
    return load_model(model or "nano")[1], str(model or "nano")


def _default_recipes(config: Config | None) -> dict[str, DatasetConfig]:
    """Return the recipes of :meth:`Annotator.random_prompt` by name, the default one first."""
    configured = {} if config is None else {"this configuration": config.dataset}
    kinds = {k: replace(DatasetConfig(), prompt_types=[k]) for k in PROMPT_TYPES}
    return configured | kinds | {"official": _official_recipe()}


@cache
def _official_recipe() -> DatasetConfig:
    return load_config(overrides=["recipe=official"]).dataset


PromptDebugger = Annotator  # alias for earlier versions
