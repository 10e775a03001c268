"""Write small datasets in the layouts that the sources read."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

if TYPE_CHECKING:
    from sam2kit.config.schema import DatasetConfig
    from sam2kit.data.sources.base import VideoSource

SIZE = (24, 32)


def square(row: int, column: int, side: int = 8, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a bool mask ``[*size]`` with a filled square."""
    mask = np.zeros(size, bool)
    mask[row : row + side, column : column + side] = True
    return mask


def save_palette(path: Path, ids: np.ndarray) -> None:
    """Save object numbers as a palette PNG."""
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([v for n in range(256) for v in (n, 255 - n, 7 * n % 256)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def save_frame(path: Path, value: int, size: tuple[int, int] = SIZE) -> None:
    """Save a frame of one grey value, by which a test recognizes the frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path, quality=95)


def make_davis(
    root: Path,
    videos: dict[str, int] | None = None,
    below: str = "",
    ending: str = ".jpg",
    annotated: Any = lambda t: True,
) -> Path:
    """Write videos of two squares: object 1 moves right from column 0, object 2 does not move.

    ``videos`` maps names to numbers of frames; frame t has the grey value 10 t.
    """
    for name, num_frames in (videos or {"a": 6, "b": 6}).items():
        for t in range(num_frames):
            save_frame(root / "JPEGImages" / below / name / f"{t:05d}{ending}", 10 * t)
            if annotated(t):
                ids = np.zeros(SIZE, np.uint8)
                ids[square(0, 2 * t % 24)] = 1
                ids[square(12, 20)] = 2
                save_palette(root / "Annotations" / below / name / f"{t:05d}.png", ids)
    return root


def make_coco(root: Path, num_frames: int = 4, videos: tuple[Any, ...] = ("a", 7)) -> dict:
    """Write frames to ``root/images`` and return the content of a COCO JSON file for them."""
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for v in videos:
        for t in reversed(range(num_frames)):  # order_in_video decides, not the order in the file
            name = f"images/{v}/{t}.png"
            save_frame(root / name, 10 * t)
            content["images"].append(
                {"id": f"{v}-{t}", "video_id": v, "order_in_video": 2 * t, "file_name": name}
            )
            for track, mask in ((3, square(0, 2 * t)), ("cat", square(12, 20))):
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]),
                        "image_id": f"{v}-{t}",
                        "category_id": 0,
                        "track_id": track,
                        "segmentation": compressed(mask),
                    }
                )
    return content


def compressed(mask: np.ndarray) -> dict[str, Any]:
    runs = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def save_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def make_ytvis(root: Path, num_frames: int = 4, videos: tuple[Any, ...] = (2, 10)) -> dict:
    """Write frames and return a JSON document like YouTube-VIS: the objects of :func:`make_coco`.

    The first object of each video is invisible on frame 1. Only every fifth frame has a file.
    """
    content: dict[str, list[Any]] = {"videos": [], "annotations": [], "categories": []}
    for v in videos:
        names = [f"{v}/{5 * t}.png" for t in range(num_frames)]
        for t, name in enumerate(names):
            save_frame(root / name, 10 * t)
        content["videos"].append({"id": v, "file_names": names, "length": num_frames})
        moving = [compressed(square(0, 2 * t)) if t != 1 else None for t in range(num_frames)]
        for masks in (moving, [compressed(square(12, 20))] * num_frames):
            n = len(content["annotations"])
            row = {"id": n, "video_id": v, "category_id": 0, "segmentations": masks}
            content["annotations"].append(row)
    return content


def save_video(
    path: Path,
    values: list[int],
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    **options: Any,
) -> Path:
    """Write a video file of 12 frames per second with one grey value each.

    ``options`` are attributes of the encoder, except for ``times``, the presentation time of each
    frame in milliseconds, and ``options``, a dictionary of codec options.
    """
    import av

    times, encoder = options.pop("times", None), options.pop("options", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = encoder | ({"crf": "10"} if codec == "libx264" else {})
        for key, value in options.items():
            setattr(stream.codec_context, key, value)
        for t, value in enumerate(values):
            pixels = np.full((*size, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_sav(
    root: Path, num_frames: int = 6, names: tuple[str, ...] = ("a", "b"), kind: str = "manual"
) -> Path:
    """Write videos like SA-V; the squares of :func:`make_davis` are objects 0 and 3."""
    for name in names:
        save_video(root / f"{name}.mp4", [10 * t for t in range(num_frames)])
        masklet = [
            [compressed(square(0, 2 * t % 24)), compressed(square(12, 20))]
            for t in range(0, num_frames, 4)
        ]
        content = {
            "video_id": name,
            "video_frame_count": float(num_frames),
            "masklet": masklet,
            "masklet_id": [0, 3],
        }
        save_json(root / f"{name}_{kind}.json", content)
    return root


def training_videos(config: DatasetConfig, seed: int = 0) -> VideoSource:
    """Open all videos of a section as training does, without holding any out."""
    from sam2kit.config.schema import Config
    from sam2kit.data.build import open_sets

    settings = Config(dataset=config, seed=seed)
    settings.valdataset.type = "synthetic"
    return open_sets(settings).train


def everything(source: Any) -> list[Any]:
    """Read all names, frames and masks of a source, as values that can be compared."""
    content: list[Any] = [source.names]
    for i in range(len(source)):
        for t in range(source.num_frames(i)):
            masks, void = source.read_masks(i, t), source.read_void(i, t)
            mask_bytes = None if masks is None else {k: m.tobytes() for k, m in masks.items()}
            void_bytes = None if void is None else void.tobytes()
            content.append((source.frame_name(i, t), source.read_frame(i, t).tobytes()))
            content.append((mask_bytes, void_bytes))
    return content


def make_textured(root: Path, videos: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    """Write videos of noise, which differ, with one square that moves right by 2 pixels per frame.

    ``videos`` maps names, which determine the pixels, to numbers of frames.
    """
    for name, num_frames in videos.items():
        generator = np.random.default_rng(list(name.encode()))
        background = generator.integers(0, 200, (*size, 3), np.uint8)
        for t in range(num_frames):
            mask = square(8, 2 * t % 20, 10, size)
            pixels = np.where(mask[..., None], 255 - t, np.roll(background, t, 1)).astype(np.uint8)
            path = root / "JPEGImages" / name / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            save_palette(root / "Annotations" / name / f"{t:05d}.png", mask * 1)
    return root
