"""Export: official-format weights and the YAML that builds them, proved by tracking with them.

The proof has two parts, both on a small generated clip and on the CPU. A fresh process builds the
files with the plain ``sam2`` package (:mod:`sam2kit.models.plain_sam2`) and its logits are compared
with

- those of the same ``SAM2VideoPredictor``, built in this process around the tuned weights, and
- those of the tuned :class:`~sam2kit.models.sam2.SAM2Model` itself, with its LoRA still beside the
  weights, against upstream's ``track_step`` (the predictor differs from training by design).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
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
from sam2kit.models.sam2 import SAM2Model, describe_model
from sam2kit.prompts.geometry import mask_to_box
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import CheckpointError, ConfigError
from sam2kit.viz.overlays import frames_to_images

PROOF_FRAMES = 4
TOLERANCE = 1e-3
"""Largest difference that passes: of logits as a share of their standard deviation in a mask, of
object scores as a share of the score."""


@dataclass(frozen=True)
class Export:
    """What was written and how it was proved.

    Attributes:
        weights, config: ``OUT.pt`` and ``OUT.yaml``.
        size, image_size: of the model.
        predictor_difference, step_difference: largest difference of logits in the two parts of the
            proof, as a share of their deviation.
    """

    weights: Path
    config: Path
    size: str
    image_size: int
    predictor_difference: float
    step_difference: float

    def summary(self) -> str:
        """What to tell the user, with the lines that use the files."""
        return (
            f"wrote {self.weights} and {self.config} (size {self.size}, {self.image_size} px)\n"
            f"proved on {PROOF_FRAMES} frames in a fresh process: logits differ by at most "
            f"{self.predictor_difference:.1e} (video predictor) and {self.step_difference:.1e} "
            "(tuned model) of their deviation\n"
            "use it with the plain sam2 package:\n"
            "  import os; from sam2.build_sam import build_sam2_video_predictor\n"
            f'  yaml = "/" + os.path.abspath("{self.config}")\n'
            f'  predictor = build_sam2_video_predictor(yaml, "{self.weights}")'
        )


def export(source: str | Path, out: str | Path) -> Export:
    """Write a model for the plain ``sam2`` package, and prove that it tracks the same there.

    Args:
        source: a run's folder (its ``best.ckpt``), a checkpoint file or a name such as ``nano``.
        out: a new ``.pt`` file; the YAML goes beside it. Neither is written unless the proof holds.

    Raises:
        ConfigError: ``out`` cannot be written there.
        CheckpointError: ``source`` cannot be read, or the export does not track the same.
    """
    out = Path(out)
    yaml = out.with_suffix(".yaml")
    if out.suffix != ".pt":
        raise ConfigError(f"OUT: {out} must end in .pt")
    for path in (out, yaml):
        if path.exists():
            raise ConfigError(f"OUT: {path} exists already; name another file or delete it")
    if not out.parent.is_dir():
        raise ConfigError(f"OUT: the folder {out.parent} does not exist; make it first")
    config, model = load_model(source)
    with tempfile.TemporaryDirectory(prefix=".sam2kit-export-", dir=out.parent) as folder:
        weights, tree = Path(folder) / out.name, Path(folder) / yaml.name
        save_weights(model, weights)
        text = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
        tree.write_text(f"# @package _global_\n{text}", encoding="utf-8")
        differences = prove(config, model, tree, weights)
        os.replace(weights, out)
        os.replace(tree, yaml)
    return Export(out, yaml, config.model.size, config.dataset.image_size, *differences)


def prove(config: Config, model: SAM2Model, yaml: Path, weights: Path) -> tuple[float, float]:
    """Compare a model with its exported files; see the module for how.

    Returns:
        the largest differences of the predictor's and of the tuned model's logits.

    Raises:
        CheckpointError: the files do not load with the plain package, or track otherwise.
    """
    batch = _clip(config)
    masks = batch.masks[0]
    with tempfile.TemporaryDirectory() as folder:
        for t, image in enumerate(frames_to_images(batch.frames[0])):
            Image.fromarray(image).save(Path(folder) / f"{t:05d}.jpg", quality=95)
        clip = {
            "folder": folder,
            "images": normalize(batch.frames[0]),
            "mask": masks[0],
            "box": mask_to_box(masks[-1:])[0].float(),
            "threads": torch.get_num_threads(),
        }
        theirs = _in_fresh_process(yaml, weights, clip)
        with redirect_stderr(StringIO()):  # its progress bars
            ours = plain_sam2.track_folder(_predictor(config, model), clip)
    prompt = Prompt(0, torch.tensor([0]), masks=masks[:1])
    with torch.inference_mode():
        output = model.cpu().eval()(batch, [prompt])
    score = output.object_score[:, 0]
    found = (
        _difference(theirs["predictor"], ours),
        max(
            _difference(theirs["logits"], output.mask_logits[:, 0]),
            float(((theirs["scores"] - score) / score).abs().max()),
        ),
    )
    if not all(difference <= TOLERANCE for difference in found):  # NaN neither
        raise CheckpointError(
            f"the export does not track like the model: its logits differ by {found[0]:.1e} (video "
            f"predictor) and {found[1]:.1e} (tuned model) of their deviation, and {TOLERANCE} is "
            "allowed; nothing was written"
        )
    return found


def _clip(config: Config) -> ClipBatch:
    """A generated clip of the model's size; its objects are all visible on the first frame."""
    proof = Config()
    proof.dataset.type = "synthetic"
    proof.dataset.image_size = config.dataset.image_size
    proof.dataset.video_clip_length = PROOF_FRAMES
    proof.valdataset.synthetic_videos = 1
    clip = build_validation(proof)[0]
    return collate([clip.select_objects(clip.visible[0].nonzero().flatten().tolist())])


def _predictor(config: Config, model: SAM2Model) -> Any:
    """Upstream's predictor around the tuned weights, without going through files."""
    tree = describe_model(config)
    tree["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    predictor = instantiate(tree, _recursive_=True)
    predictor.load_state_dict(merged_state(model))
    return predictor.eval()


def _in_fresh_process(yaml: Path, weights: Path, clip: dict[str, Any]) -> dict[str, Tensor]:
    package = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "clip.pt", Path(folder) / "results.pt"
        torch.save(clip, given)
        arguments = map(str, (yaml, weights, given, results))
        command = [sys.executable, "-m", plain_sam2.__name__, *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(
                f"the export does not work with the plain sam2 package: {last}; nothing was written"
            )
        return torch.load(results, weights_only=True)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of logits ``[...,h,w]``, as a share of their deviation in their own map.

    Each map counts by itself: a prompted mask's logits of -10 and 10 would hide the others. A map
    without deviation (a withheld mask) has to be equal.
    """
    difference = (found - expected).abs().flatten(-2).amax(-1)
    share = difference / expected.flatten(-2).std(-1)
    return float(torch.where(difference == 0, 0.0, share).max())
