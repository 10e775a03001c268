"""Generate the sample data set: ``python data_samples/make_samples.py OUT``.

The clips are stored in two formats that share the frames: DAVIS layout (palette masks, lists under
ImageSets) and COCO JSON. Every call generates the same frames and masks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sam2kit.data.rle import encode_mask
from sam2kit.data.synthetic.dataset import SyntheticDataset

SPLITS = {"train": (72, 20250), "val": (12, 20251)}  # number of clips, seed
NUM_FRAMES = 8
SIZE = (128, 160)
MAX_OBJECTS = 3
MOTION = 0.16
# Clips in which an object covers less than this share of the first frame are skipped, because
# objects are prompted there.
MIN_SHARE = 0.02
JPEG_QUALITY = 88
POLYGON_EVERY = 6  # every sixth clip has polygons in the JSON, the others have run lengths
PALETTE = [(0, 0, 0), (230, 75, 53), (77, 187, 213), (240, 190, 60)]

README = """# Sample data

Generated clips of {frames} frames, {width}x{height} pixels, with one to three textured objects that
move far, turn, deform and hide one another: {train} to train on, {val} to validate on. They serve
the quick start and the tests; nothing in them was filmed.

- DAVIS layout: `JPEGImages/VIDEO/00000.jpg`, `Annotations/VIDEO/00000.png` (palette PNG, the pixel
  is the object's number), `ImageSets/train.txt` and `val.txt`. In the configuration:
  `dataset.data_path=data_samples dataset.split=train valdataset.split=val`.
- COCO JSON on the same frames: `train.json`, `val.json` (`video_id`, `order_in_video`, `track_id`;
  run lengths, and in every sixth clip polygons for the masks without holes). In the configuration:
  `dataset.type=coco dataset.data_path=data_samples` with
  `dataset.annotation_file=data_samples/train.json` and
  `valdataset.annotation_file=data_samples/val.json`.

The mask of the first frame, copied to the other frames, has a mean IoU of {copy:.2f} on the
validation clips.

Made by `python data_samples/make_samples.py data_samples`; the seeds stand in that script.
Dedicated to the public domain under CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/).
"""


def make_samples(out: Path, splits: tuple[str, ...] = tuple(SPLITS)) -> None:
    """Write the sample data set, or some of its splits, to ``out``, which is created if missing."""
    (out / "ImageSets").mkdir(parents=True, exist_ok=True)
    copied = {}
    for split in splits:
        count, seed = SPLITS[split]
        # Twice as many clips as needed, because some are skipped.
        source = SyntheticDataset(2 * count, NUM_FRAMES, SIZE, MAX_OBJECTS, seed, MOTION)
        chosen = [i for i in range(len(source)) if shows_all_objects(source, i)][:count]
        if len(chosen) < count:
            raise ValueError(
                f"only {len(chosen)} of {count} {split} clips show all objects on the first frame"
            )
        names = [f"{split}_{n:03d}" for n in range(count)]
        (out / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n")
        content: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "object"}],
        }
        for n, (name, i) in enumerate(zip(names, chosen, strict=True)):
            _write_clip(out, name, source, i, content, polygons=n % POLYGON_EVERY == 0)
        (out / f"{split}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
        copied[split] = np.mean([copied_mask_iou(source, i) for i in chosen])
    if "val" not in copied:
        return
    readme = README.format(
        frames=NUM_FRAMES,
        width=SIZE[1],
        height=SIZE[0],
        train=SPLITS["train"][0],
        val=SPLITS["val"][0],
        copy=copied["val"],
    )
    (out / "README.md").write_text(readme)


def shows_all_objects(source: SyntheticDataset, i: int) -> bool:
    """Return whether every object covers at least ``MIN_SHARE`` of the first frame."""
    masks = source.scene(i).masks(0)
    shares = [mask.mean() for mask in masks.values()]
    return len(masks) == len(source.scene(i).object_ids) and min(shares) >= MIN_SHARE


def copied_mask_iou(source: SyntheticDataset, i: int) -> float:
    """Compute the mean IoU of the first masks copied to all later frames."""
    scene = source.scene(i)
    first = scene.masks(0)
    scores = []
    for t in range(1, source.num_frames(i)):
        later = scene.masks(t)
        for n, mask in first.items():
            truth = later.get(n, np.zeros_like(mask))
            scores.append((mask & truth).sum() / (mask | truth).sum())
    return float(np.mean(scores))


def _write_clip(
    out: Path,
    name: str,
    source: SyntheticDataset,
    i: int,
    content: dict[str, list[Any]],
    polygons: bool,
) -> None:
    """Write frames and palette masks of clip ``i``, and add its COCO entries to ``content``."""
    frames, masks = out / "JPEGImages" / name, out / "Annotations" / name
    frames.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for t in range(NUM_FRAMES):
        Image.fromarray(source.read_frame(i, t)).save(
            frames / f"{t:05d}.jpg", quality=JPEG_QUALITY, optimize=True
        )
        ids = np.zeros(SIZE, np.uint8)
        image_id = len(content["images"]) + 1
        content["images"].append(
            {
                "id": image_id,
                "video_id": name,
                "order_in_video": t,
                "file_name": f"JPEGImages/{name}/{t:05d}.jpg",
                "height": SIZE[0],
                "width": SIZE[1],
            }
        )
        for n, mask in source.scene(i).masks(t).items():
            ids[mask] = n
            annotation = _annotation(mask, polygons)
            annotation |= {"id": len(content["annotations"]) + 1, "image_id": image_id}
            annotation |= {"category_id": 1, "track_id": n, "iscrowd": 0}
            content["annotations"].append(annotation)
        picture = Image.fromarray(ids)
        picture.putpalette([channel for colour in PALETTE for channel in colour])
        picture.save(masks / f"{t:05d}.png", optimize=True)


def _annotation(mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    """Make ``segmentation``, ``area`` and ``bbox`` (x, y, width, height) of a mask."""
    segmentation: Any = encode_mask(mask)
    bbox = coco_mask.toBbox(segmentation).tolist()
    if polygons:
        # OpenCV's contours connect pixel centres; at twice the size they are close to the edges.
        double = np.kron(mask, np.ones((2, 2), bool)).astype(np.uint8)
        contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if (hierarchy[0, :, 3] < 0).all():  # COCO polygons cannot have holes
            segmentation = [((c.reshape(-1) + 0.5) / 2).tolist() for c in contours]
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": bbox}


def main() -> None:
    """Parse the command line and write the data set."""
    parser = argparse.ArgumentParser(description="Generate the sample data set.")
    parser.add_argument("out", type=Path, help="folder to write to")
    make_samples(parser.parse_args().out)


if __name__ == "__main__":
    main()
