"""Export weights and YAML in the official format, and verify them by tracking a clip.

The proof runs on a small generated clip on the CPU. A fresh process builds the model from the files
with the plain ``sam2`` package (:mod:`sam2kit.models.plain_sam2`), and tracks the clip in two ways:

- with ``SAM2VideoPredictor``. This process builds the same predictor from the tuned weights in
  memory, and the logits must agree.
- with upstream's ``track_step``. The tuned :class:`~sam2kit.models.sam2.SAM2Model`, with LoRA not
  merged, tracks the clip in this process, and the logits must agree. The predictor cannot be
  compared with this model, because it differs from training by design.
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
"""Maximum difference that passes: relative to the standard deviation of a mask's logits, and for
object scores relative to the score."""


@dataclass(frozen=True)
class Export:
    """The files of an export and the result of its proof.

    Attributes:
        weights, config: the files ``OUT.pt`` and ``OUT.yaml``.
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
        return (
            f"wrote {self.weights} and {self.config} (size {self.size}, {self.image_size} px)\n"
            f"proved on {PROOF_FRAMES} frames in a fresh process: maximum difference of logits "
            f"{self.predictor_difference:.1e} (video predictor) and {self.step_difference:.1e} "
            "(tuned model) standard deviations\n"
            "use it with the plain sam2 package:\n"
            "  import os; from sam2.build_sam import build_sam2_video_predictor\n"
            f'  yaml = "/" + os.path.abspath("{self.config}")\n'
            f'  predictor = build_sam2_video_predictor(yaml, "{self.weights}")'
        )


def export(source: str | Path, out: str | Path) -> Export:
    """Export a model for the plain ``sam2`` package, and prove that it tracks the same there.

    Args:
        source: a run directory (its ``best.ckpt``), a checkpoint file or a name such as ``nano``.
        out: a new ``.pt`` file. The YAML file gets the same name with ``.yaml``. Nothing is written
            if the proof fails.

    Returns:
        The files and the differences that the proof measured.

    Raises:
        ConfigError: ``out`` does not end in ``.pt``, exists already, or its directory is missing.
        CheckpointError: ``source`` cannot be read, or the exported model tracks differently.
    """
    out = Path(out)
    yaml = out.with_suffix(".yaml")
    if out.suffix != ".pt":
        raise ConfigError(
            key="OUT",
            value=str(out),
            expected="a path that ends in .pt",
            hint=f"try {out.with_suffix('.pt')}",
        )
    for path in (out, yaml):
        if path.exists():
            raise ConfigError(
                f"{path} exists already",
                key="OUT",
                value=str(out),
                hint="name another file or delete it",
            )
    if not out.parent.is_dir():
        raise ConfigError(
            f"the directory {out.parent} does not exist",
            key="OUT",
            value=str(out),
            hint="create it first",
        )
    config, model = load_model(source)
    # Beside OUT, so that the files can be renamed into place once the proof holds.
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
    """Compare a model with its exported files, as the description of this module says.

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
        exported = _track_in_fresh_process(yaml, weights, clip)
        with redirect_stderr(StringIO()):  # hide upstream's progress bars
            predictor_logits = plain_sam2.track_folder(_predictor(config, model), clip)
    prompt = Prompt(0, torch.tensor([0]), masks=masks[:1])
    with torch.inference_mode():
        output = model.cpu().eval()(batch, [prompt])
    score = output.object_score[:, 0]
    differences = (
        _difference(exported["predictor"], predictor_logits),
        max(
            _difference(exported["logits"], output.mask_logits[:, 0]),
            float(((exported["scores"] - score) / score).abs().max()),
        ),
    )
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


def _predictor(config: Config, model: SAM2Model) -> Any:
    """Build upstream's predictor from the tuned weights in memory, without files."""
    tree = describe_model(config)
    tree["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    predictor = instantiate(tree, _recursive_=True)
    predictor.load_state_dict(merged_state(model))
    return predictor.eval()


def _track_in_fresh_process(yaml: Path, weights: Path, clip: dict[str, Any]) -> dict[str, Tensor]:
    """Run :mod:`sam2kit.models.plain_sam2` in a new interpreter, and return its results.

    A new process has none of this one's imports, patches and Hydra state, as on a user's machine.
    """
    package = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        clip_file, results = Path(folder) / "clip.pt", Path(folder) / "results.pt"
        torch.save(clip, clip_file)
        arguments = map(str, (yaml, weights, clip_file, results))
        command = [sys.executable, "-m", plain_sam2.__name__, *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(
                "the export does not work with the plain sam2 package: "
                f"{last_line}; nothing was written",
                hint="check that the installed sam2 is the version that sam2kit requires",
            )
        return torch.load(results, weights_only=True)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Compute the maximum difference of logits ``[...,h,w]``, in standard deviations of their map.

    Each map is compared with its own deviation, because a prompted mask's logits of -10 and 10
    would hide differences in the others. A constant map, as of an absent object, must be equal.
    """
    difference = (actual - expected).abs().flatten(-2).amax(-1)
    relative = difference / expected.flatten(-2).std(-1)
    return float(torch.where(difference == 0, 0.0, relative).max())
