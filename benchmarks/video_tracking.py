"""Compare tracking of whole videos by sam2kit, upstream and transformers.

Objects are prompted with their masks on the first frame. All sides read the same JPEG files and
return masks at the size of the video. Upstream's predictor and sam2kit's tracker have the same
random weights. The transformers model has the same architecture with other random weights, which do
not affect its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.measure import (
    Finding,
    Options,
    autocast,
    crowded_videos,
    in_turns,
    ratio,
    write_davis,
)
from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data import VideoDataset
from sam2kit.models.checkpoints import create_sam2_model, save_weights
from sam2kit.models.sam2 import SAM2Model, describe_model
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import VideoTracker

Track = Callable[[], np.ndarray]
"""Function that tracks the video and returns its masks, bool ``[T,O,H,W]``."""


def by_kit(
    model: SAM2Model,
    video: VideoDataset,
    mixed: bool,
    compiled: Mapping[str, Any] | None = None,
    **options: Any,
) -> Track:
    """Track with sam2kit.

    Args:
        mixed: use bf16 autocast.
        compiled: arguments of :meth:`VideoTracker.compile`. If None (default), nothing is compiled.
        options: other fields of :class:`TrackerOptions`.
    """
    tracker = VideoTracker(model, TrackerOptions(autocast=mixed, **options))
    if compiled is not None:
        tracker.compile(**compiled)
    first = np.stack(list((video.read_masks(0, 0) or {}).values()))
    size = first.shape[1], first.shape[2]

    def track() -> np.ndarray:
        session = tracker.open(lambda t: video.read_frame(0, t), video.num_frames(0), size)
        session.add_prompt(Prompt(0, torch.arange(len(first)), masks=torch.from_numpy(first)))
        return np.stack([tracks.masks(size) for tracks in session.propagate()])

    return track


def by_predictor(
    config: Config,
    model: SAM2Model,
    video: VideoDataset,
    folder: Path,
    device: str,
    mixed: bool,
    compiled: bool = False,
) -> Track:
    """Track with upstream's predictor.

    Args:
        mixed: use bf16 autocast.
        compiled: use the predictor's ``vos_optimized`` form, which compiles the model.
    """
    from sam2.build_sam import build_sam2_video_predictor

    # The predictor loads its configuration and weights from files.
    tree = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
    (folder / "model.yaml").write_text(f"# @package _global_\n{tree}")
    save_weights(model, folder / "model.pt")
    predictor = build_sam2_video_predictor(
        f"/{folder}/model.yaml",
        str(folder / "model.pt"),
        device=device,
        vos_optimized=compiled,
    )
    frame = video.frame_path(0, 0)
    assert frame is not None
    masks = video.read_masks(0, 0) or {}

    def track() -> np.ndarray:
        frame_masks = []
        with torch.inference_mode(), autocast(device, mixed), redirect_stderr(StringIO()):
            state = predictor.init_state(str(frame.parent))
            for number, mask in enumerate(masks.values()):
                predictor.add_new_mask(state, 0, number, mask)
            for _, _, logits in predictor.propagate_in_video(state):
                frame_masks.append((logits[:, 0] > 0).cpu().numpy())
        return np.stack(frame_masks)

    return track


def by_transformers(image_size: int, video: VideoDataset, device: str) -> Track:
    """Track with transformers; its default configuration is the tiny model."""
    from transformers import (
        Sam2HieraDetConfig,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoPromptEncoderConfig,
        Sam2VideoVideoProcessor,
        Sam2VisionConfig,
    )
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    side, grid = image_size, [[image_size // k] * 2 for k in (4, 8, 16)]
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(image_size=[side, side]), backbone_feature_sizes=grid
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(image_size=side),
        image_size=side,
        memory_attention_rope_feat_sizes=grid[-1],
    )
    model = Sam2VideoModel(config).to(device).eval()
    size = {"height": side, "width": side}
    processor = Sam2VideoProcessor(
        Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), target_size=side
    )
    masks = video.read_masks(0, 0) or {}
    height, width = next(iter(masks.values())).shape
    paths = [video.frame_path(0, t) for t in range(video.num_frames(0))]

    @torch.inference_mode()
    def track() -> np.ndarray:
        frames = [np.asarray(Image.open(path).convert("RGB")) for path in paths if path]
        session = processor.init_video_session(video=frames, inference_device=device)
        processor.add_inputs_to_inference_session(
            session, 0, list(range(len(masks))), input_masks=list(masks.values())
        )
        frame_masks = []
        for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
            (logits,) = processor.post_process_masks(
                [output.pred_masks], [[height, width]], binarize=False
            )
            frame_masks.append((logits[:, 0] > 0).cpu().numpy())
        return np.stack(frame_masks)

    return track


def whole_videos(options: Options, objects: int) -> list[Finding]:
    """Compare the time per video for reading, tracking, and masks at the size of the video."""
    has_transformers = find_spec("transformers") is not None and options.model == "t"
    with TemporaryDirectory() as name:
        folder = Path(name)
        davis = write_davis(crowded_videos(1, options.video_frames, objects), folder / "davis")
        video = VideoDataset(davis)
        sizes = [f"model.size={options.model}", f"dataset.image_size={options.image_size}"]
        config = load_config(None, [*sizes, "model.object_score_bias=5", "features.cache=off"])
        model = create_sam2_model(config).to(options.device)
        device = options.device
        sides = {
            "predictor": by_predictor(config, model, video, folder, device, False),
            "predictor, bf16": by_predictor(config, model, video, folder, device, True),
            "kit": by_kit(model, video, False),
            "kit, bf16": by_kit(model, video, True),
        }
        if has_transformers:
            sides["transformers"] = by_transformers(options.image_size, video, device)
        masks: dict[str, np.ndarray] = {}
        # Keep the masks of the timed runs to compare them afterwards. No warm-up is needed, because
        # a run is long compared with its first frame.
        runs = {k: partial(_store_masks, masks, k, track) for k, track in sides.items()}
        times = in_turns(runs, min(options.repeats, 3), device)
    agreement = (masks["kit"] == masks["predictor"]).mean()
    object_text = f"{objects} object{'s' * (objects > 1)}"
    what = f"tracking {options.video_frames} frames, {object_text}"
    predictor = "`SAM2VideoPredictor`"
    bound = 2.0 if objects == 3 else None
    note = f"bf16; in float32 {agreement:.4%} of the pixels equal the predictor's"
    findings = [
        ratio(what, predictor, times["predictor"], times["kit, bf16"], bound, note),
        ratio(f"{what}, float32", predictor, times["predictor"], times["kit"]),
        ratio(f"{what}, both bf16", predictor, times["predictor, bf16"], times["kit, bf16"]),
    ]
    theirs = "transformers' `Sam2VideoModel`"
    if has_transformers:
        findings += [
            ratio(what, theirs, times["transformers"], times["kit, bf16"], bound),
            ratio(f"{what}, float32", theirs, times["transformers"], times["kit"]),
        ]
    else:
        reason = "not installed" if options.model == "t" else f"no model of size {options.model}"
        findings.append(Finding(what, theirs, reason, "", None, ""))
    return findings


def _store_masks(masks: dict[str, np.ndarray], name: str, track: Track) -> None:
    masks[name] = track()
