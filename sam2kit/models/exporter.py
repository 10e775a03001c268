"""Export weights for the plain ``sam2`` package or for transformers, and verify them.

The proof runs on a small generated clip on the CPU. A fresh process builds the model from the files
with the plain ``sam2`` package (:mod:`sam2kit.models.plain_sam2`), and tracks the clip in two ways:

- with ``SAM2VideoPredictor``. This process builds the same predictor from the tuned weights in
  memory, and the logits must agree.
- with upstream's ``track_step``. The tuned :class:`~sam2kit.models.sam2.SAM2Model`, with LoRA not
  merged, tracks the clip in this process, and the logits must agree. The predictor cannot be
  compared with this model, because it differs from training by design.

An export for transformers is proved in the same two ways: a fresh process loads it as a
``Sam2VideoModel`` (:mod:`sam2kit.models.plain_transformers`), whose logits must agree with those of
``SAM2VideoPredictor``; and the tuned model must agree with upstream's ``track_step``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from sam2kit.config.schema import Config
from sam2kit.data.build import build_validation
from sam2kit.data.clip import ClipBatch, collate
from sam2kit.data.transforms import normalize
from sam2kit.models import plain_sam2
from sam2kit.models.checkpoints import load_model, save_weights
from sam2kit.models.lora import merged_state
from sam2kit.models.sam2 import DECODER_SETTINGS, SAM2Model, describe_model
from sam2kit.models.transformers_format import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    to_transformers,
    transformers_config,
)
from sam2kit.prompts.geometry import mask_to_box
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import CheckpointError, ConfigError
from sam2kit.utils.text import suggest
from sam2kit.utils.unfinished import publish, remove_leftovers, unfinished
from sam2kit.viz.overlays import frames_to_images

FORMATS = ("sam2", "transformers")
PROOF_FRAMES = 4
TOLERANCE = 1e-3
"""Maximum difference that passes: relative to the standard deviation of a mask's logits, and for
object scores relative to the score."""


@dataclass(frozen=True)
class Export:
    """The files of an export and the result of its proof.

    Attributes:
        weights, config: the files ``OUT.pt`` and ``OUT.yaml``, or ``OUT/model.safetensors`` and
            ``OUT/config.json``.
        size, image_size: model size, and side of its square frames in pixels.
        predictor_difference, step_difference: maximum difference of logits in the two parts of the
            proof, relative to the standard deviation of the logits.
    """

    weights: Path
    config: Path
    size: str
    image_size: int
    predictor_difference: float
    step_difference: float

    def summary(self) -> str:
        """Describe the export, and show the code that loads the files."""
        if self.config.name == CONFIG_FILE:
            use = (
                "use it with transformers:\n"
                "  from transformers import Sam2VideoModel, Sam2VideoProcessor\n"
                f'  model = Sam2VideoModel.from_pretrained("{self.weights.parent}")\n'
                f'  processor = Sam2VideoProcessor.from_pretrained("{self.weights.parent}")'
            )
        else:
            use = (
                "use it with the plain sam2 package:\n"
                "  import os; from sam2.build_sam import build_sam2_video_predictor\n"
                f'  yaml = "/" + os.path.abspath("{self.config}")\n'
                f'  predictor = build_sam2_video_predictor(yaml, "{self.weights}")'
                '  # without a GPU: device="cpu"'
            )
        return (
            f"wrote {self.weights} and {self.config} (size {self.size}, {self.image_size} px)\n"
            f"proved on {PROOF_FRAMES} frames in a fresh process: maximum difference of logits "
            f"{self.predictor_difference:.1e} (video predictor) and {self.step_difference:.1e} "
            f"(tuned model) standard deviations\n{use}"
        )


def export(source: str | Path, out: str | Path, format: str = "sam2") -> Export:
    """Export a model for another package, and prove that it tracks identically there.

    Args:
        source: a run directory (its ``best.ckpt``), a checkpoint file or a name such as ``nano``.
        out: for ``sam2`` a new ``.pt`` file; the YAML file gets the same name with ``.yaml``. For
            ``transformers`` a new directory. Nothing is written if the proof fails.
        format: ``sam2`` (default), or ``transformers`` for a ``Sam2VideoModel``.

    Returns:
        The files and the differences that the proof measured.

    Raises:
        ConfigError: ``format`` is unknown or not installed, ``out`` has the wrong suffix or exists
            already, or its directory is missing.
        CheckpointError: ``source`` cannot be read, or the exported model tracks differently.
    """
    out = Path(out)
    _check_target(out, format)
    config, model = load_model(source)
    if format == "transformers":
        return _export_transformers(config, model, out)
    yaml = out.with_suffix(".yaml")
    # Beside OUT, so that the files can be renamed into place once the proof has passed.
    with unfinished(out) as folder:
        weights, tree = folder / out.name, folder / yaml.name
        save_weights(model, weights)
        text = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
        tree.write_text(f"# @package _global_\n{text}", encoding="utf-8")
        differences = prove(config, model, tree, weights)
        publish({weights: out, tree: yaml})
    return Export(out, yaml, config.model.size, config.dataset.image_size, *differences)


def _check_target(out: Path, format: str) -> None:
    """Reject a format or a path that :func:`export` cannot write, before the model is loaded."""
    if format not in FORMATS:
        raise ConfigError(
            key="--format",
            value=format,
            expected=f"one of {', '.join(FORMATS)}",
            hint=suggest(format, FORMATS),
        )
    if format == "transformers":
        if find_spec("transformers") is None:
            raise ConfigError(
                "needs the package transformers, which is not installed",
                key="--format",
                value=format,
                hint="pip install transformers",
            )
        paths = [out]
    else:
        if out.suffix != ".pt":
            raise ConfigError(
                key="out",
                value=str(out),
                expected="a path that ends in .pt",
                hint=f"try {out.with_suffix('.pt')}",
            )
        paths = [out, out.with_suffix(".yaml")]
    remove_leftovers(out)
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"{path} exists already",
                key="out",
                value=str(out),
                hint="choose another file, or delete this one",
            )
    if not out.parent.is_dir():
        raise ConfigError(
            f"the directory {out.parent} does not exist",
            key="out",
            value=str(out),
            hint="create it first",
        )


def _export_transformers(config: Config, model: SAM2Model, out: Path) -> Export:
    """Write a directory for ``Sam2VideoModel.from_pretrained``, as described in :func:`export`."""
    from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    tree = describe_model(config)
    if tree.memory_encoder.out_dim == tree.image_encoder.neck.d_model:
        raise ConfigError(
            "transformers cannot run a model whose memories are as wide as its features",
            key="model.size",
            value=config.model.size,
            hint="train one of the sizes t, s, b+ and l, or export with --format sam2",
        )
    exported = Sam2VideoModel(Sam2VideoConfig(**transformers_config(tree)))
    state = merged_state(model)
    exported.load_state_dict(to_transformers(state, exported.state_dict()))
    # Beside OUT, so that the directory can be renamed into place once the proof has passed.
    with unfinished(out) as folder:
        part = folder / out.name
        with redirect_stderr(StringIO()):  # hide the progress bar
            exported.save_pretrained(part)
        size = {"height": tree.image_size, "width": tree.image_size}
        images, videos = Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size)
        Sam2VideoProcessor(images, videos, target_size=tree.image_size).save_pretrained(part)
        differences = prove_transformers(config, model, part)
        os.replace(part, out)
    weights, settings = out / WEIGHTS_FILE, out / CONFIG_FILE
    return Export(weights, settings, config.model.size, config.dataset.image_size, *differences)


def prove_transformers(config: Config, model: SAM2Model, folder: Path) -> tuple[float, float]:
    """Compare a model with its export for transformers, as described in the module's docstring.

    The prompts are a box and a click. With a mask prompt, transformers 5.24 computes a different
    object pointer than ``sam2``.

    Args:
        config: configuration of the model.
        model: the tuned model; it is moved to the CPU.
        folder: the exported directory.

    Returns, Raises:
        See :func:`prove`.
    """
    batch = _clip(config)
    clip: dict[str, Any] = {
        "images": normalize(batch.frames[0]),
        "mask": batch.masks[0, 0],
        "box": mask_to_box(batch.masks[0, :1])[0].float(),
        "threads": torch.get_num_threads(),
    }
    rows, columns = batch.masks[0, -1].nonzero(as_tuple=True)
    clip["point"] = torch.stack([columns, rows], 1)[len(rows) // 2].float()
    # transformers applies what sam2 calls post-processing; see build_sam2_video_predictor.
    predictor = _predictor(
        config,
        model,
        sam_mask_decoder_extra_args=DECODER_SETTINGS,
        binarize_mask_from_pts_for_mem_enc=True,
    )
    # Beside the files: if this process is killed, the next call removes all of them.
    with tempfile.TemporaryDirectory(dir=folder.parent) as frames, redirect_stderr(StringIO()):
        for t, image in enumerate(frames_to_images(batch.frames[0])):
            Image.fromarray(image).save(Path(frames) / f"{t:05d}.jpg", quality=95)
        state = predictor.init_state(frames)
        predictor.add_new_points_or_box(state, 0, 1, box=clip["box"])
        point, label = clip["point"][None], torch.ones(1, dtype=torch.int32)
        predictor.add_new_points_or_box(state, 0, 2, points=point, labels=label)
        # The JPEG files differ slightly from the clip.
        clip["images"] = state["images"]
        steps = predictor.propagate_in_video(state)
        predictor_logits = torch.stack([logits[:, 0] for _, _, logits in steps])
    exported = _run_in_fresh_process(
        "sam2kit.models.plain_transformers", [folder], clip, "transformers"
    )
    clip["images"] = normalize(batch.frames[0])
    upstream = instantiate(describe_model(config), _recursive_=True)
    upstream.load_state_dict(merged_state(model))
    logits, scores = plain_sam2.track_steps(upstream.eval(), clip)
    step_difference = _tuned_difference(model, batch, logits, scores)
    return _check((_difference(exported["logits"], predictor_logits), step_difference))


def prove(config: Config, model: SAM2Model, yaml: Path, weights: Path) -> tuple[float, float]:
    """Compare a model with its exported files, as described in the module's docstring.

    Args:
        config: configuration of the model.
        model: the tuned model; it is moved to the CPU.
        yaml, weights: the exported files.

    Returns:
        The maximum differences of the predictor's and of the tuned model's logits, relative to the
        standard deviation of the logits.

    Raises:
        CheckpointError: the plain package cannot load the files, or a difference exceeds
            :data:`TOLERANCE`.
    """
    batch = _clip(config)
    masks = batch.masks[0]
    # Beside the files: if this process is killed, the next call removes all of them.
    with tempfile.TemporaryDirectory(dir=weights.parent) as folder:
        for t, image in enumerate(frames_to_images(batch.frames[0])):
            Image.fromarray(image).save(Path(folder) / f"{t:05d}.jpg", quality=95)
        clip = {
            "folder": folder,
            "images": normalize(batch.frames[0]),
            "mask": masks[0],
            "box": mask_to_box(masks[-1:])[0].float(),
            "threads": torch.get_num_threads(),
        }
        files = [yaml, weights]
        exported = _run_in_fresh_process(plain_sam2.__name__, files, clip, "the plain sam2 package")
        with redirect_stderr(StringIO()):  # hide upstream's progress bars
            predictor_logits = plain_sam2.track_folder(_predictor(config, model), clip)
    step_difference = _tuned_difference(model, batch, exported["logits"], exported["scores"])
    return _check((_difference(exported["predictor"], predictor_logits), step_difference))


def _tuned_difference(model: SAM2Model, batch: ClipBatch, logits: Tensor, scores: Tensor) -> float:
    """Compare logits ``[T,h,w]`` and scores ``[T]`` of the first object with the tuned model's."""
    prompt = Prompt(0, torch.tensor([0]), masks=batch.masks[0, :1])
    with torch.inference_mode():
        output = model.cpu().eval()(batch, [prompt])
    score = output.object_score[:, 0]
    return max(
        _difference(logits, output.mask_logits[:, 0]),
        float(((scores - score) / score).abs().max()),
    )


def _check(differences: tuple[float, float]) -> tuple[float, float]:
    """Return the two differences, or raise if one exceeds :data:`TOLERANCE`."""
    # Not "any(... > TOLERANCE)": a comparison with NaN is false, and NaN has to fail.
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckpointError(
            f"the export does not track like the model: logits differ by {differences[0]:.1e} "
            f"(video predictor) and {differences[1]:.1e} (tuned model) standard deviations, the "
            f"maximum is {TOLERANCE}; nothing was written",
            hint="check that the installed sam2 is the version that sam2kit requires, and report "
            "this with the config.yaml of the run",
        )
    return differences


def _clip(config: Config) -> ClipBatch:
    """Generate a clip at the model's image size; all objects are visible on the first frame."""
    proof = Config()
    proof.dataset.type = "synthetic"
    proof.dataset.image_size = config.dataset.image_size
    proof.dataset.video_clip_length = PROOF_FRAMES
    proof.valdataset.synthetic_videos = 1
    clip = build_validation(proof)[0]
    return collate([clip.select_objects(clip.visible[0].nonzero().flatten().tolist())])


def _predictor(config: Config, model: SAM2Model, **settings: Any) -> Any:
    """Build upstream's predictor from the tuned weights in memory, without files."""
    tree = describe_model(config)
    tree.update(settings)
    tree["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    predictor = instantiate(tree, _recursive_=True)
    predictor.load_state_dict(merged_state(model))
    return predictor.eval()


def _run_in_fresh_process(
    module: str, files: list[Path], clip: dict[str, Any], package: str
) -> dict[str, Tensor]:
    """Run a module such as :mod:`sam2kit.models.plain_sam2` in a new interpreter.

    A new process has none of this one's imports, patches and Hydra state, as on a user's machine.

    Args:
        module: called with ``files``, the clip's file and the file for the results.
        files: the exported files.
        clip: tensors and numbers for the module.
        package: the package that loads the files, for error messages.

    Returns:
        The results of the module.
    """
    parent = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(dir=files[0].parent) as folder:
        clip_file, results = Path(folder) / "clip.pt", Path(folder) / "results.pt"
        torch.save(clip, clip_file)
        command = [sys.executable, "-m", module, *map(str, (*files, clip_file, results))]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(
                f"the export does not work with {package}: {last_line[:500]}; nothing was written",
                hint="check that the installed version is the one in requirements.txt",
            )
        return torch.load(results, weights_only=True)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Compute the maximum difference of logits ``[...,h,w]``, in standard deviations of their map.

    Each map is compared with its own deviation, because a prompted mask's logits of -10 and 10
    would hide differences in the others. A constant map, as for an absent object, must be equal.
    """
    difference = (actual - expected).abs().flatten(-2).amax(-1)
    relative = difference / expected.flatten(-2).std(-1)
    return float(torch.where(difference == 0, 0.0, relative).max())
