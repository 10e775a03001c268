"""Write the videos of ``data_helpers`` as the exports of annotation tools.

Each function writes videos in which frame t has the grey value 10 t, object 1 moves to the right
and object 2 does not move, as in :func:`data_helpers.make_davis`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from data_helpers import SIZE, save_frame, save_json, square
from PIL import Image


def both(t: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of the two objects on frame ``t``."""
    return square(0, 2 * t % 24), square(12, 20)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a square in pixel edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def corners_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the four corners of a square."""
    x0, y0, x1, y1 = box_of(mask)
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def points_text(mask: np.ndarray) -> str:
    """Return the corners in CVAT's form."""
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners_of(mask))


def cvat_mask(mask: np.ndarray) -> str:
    """Return the attributes of a mask with a margin, as CVAT writes them."""
    x0, y0, x1, y1 = box_of(mask)
    left, top = max(x0 - 1, 0), max(y0 - 1, 0)
    patch = mask[top:y1, left:x1].ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], patch, [not patch[-1]]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    size = f'left="{left}" top="{top}" width="{x1 - left}" height="{y1 - top}"'
    return f'rle="{", ".join(map(str, runs))}" {size}'


def make_cvat(root: Path, videos: Iterable[str] = "ab", num_frames: int = 6) -> Path:
    """Write "CVAT for video 1.1": a tracked polygon, and masks with an attribute.

    Frame 3 is interpolated, and after the last frame the polygon is outside.
    """
    for name in videos:
        shapes = []
        for t in range(num_frames):
            save_frame(root / name / "images" / f"frame_{t:06d}.PNG", 10 * t)
            key = int(t != 3)
            shapes.append(
                f'<polygon frame="{t}" keyframe="{key}" outside="0" occluded="1" '
                f'points="{points_text(both(t)[0])}" z_order="0"/>'
            )
        shapes.append(
            f'<polygon frame="{num_frames}" keyframe="1" outside="1" occluded="0" '
            f'points="{points_text(both(0)[0])}"/>'
        )
        masks = "".join(
            f'<track id="{7 + t}" label="cell"><mask frame="{t}" keyframe="1" outside="0" '
            f'occluded="0" {cvat_mask(both(t)[1])}><attribute name="track_id">2</attribute>'
            "</mask></track>"
            for t in range(num_frames)
            if t != 3
        )
        (root / name / "annotations.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            "<meta><task><mode>interpolation</mode><original_size><width>32</width>"
            "<height>24</height></original_size></task></meta>"
            f'<track id="1" label="cell" source="manual">{"".join(shapes)}</track>{masks}'
            "</annotations>\n"
        )
    return root


def brush(mask: np.ndarray) -> list[int]:
    """Encode a mask as Label Studio's brush does (``converter/brush.py`` of label-studio-sdk)."""
    values = np.repeat(mask.ravel() * 255, 4).astype(int)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    begins = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    for begin, end in zip(begins[:-1], begins[1:], strict=True):
        if end - begin == 4:  # one pixel as separate values, which the format allows too
            bits += f"0{0:02b}{3:03b}" + "".join(f"{v:08b}" for v in values[begin:end])
        else:
            bits += f"1{3:02b}{end - begin - 1:016b}{values[begin]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def make_label_studio(root: Path, videos: Iterable[str] = "ab", num_frames: int = 6) -> Path:
    """Write an export of image tasks: brush strokes and polygons of two labels."""
    tasks: list[dict[str, Any]] = []
    for name in videos:
        for t in range(num_frames):
            save_frame(root / "media" / name / f"{t:05d}.png", 10 * t)
            size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
            moving, static = both(t)
            points = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in corners_of(static)]
            regions = [
                {
                    "id": f"r{t}",
                    "type": "brushlabels",
                    "value": {"format": "rle", "rle": brush(moving), "brushlabels": ["one"]},
                    **size,
                },
                {
                    "id": f"p{t}",
                    "type": "polygonlabels",
                    "value": {"points": points, "closed": True, "polygonlabels": ["two"]},
                    **size,
                },
                {"id": "c", "type": "choices", "value": {"choices": ["good"]}},
            ]
            tasks.append(
                {
                    "id": len(tasks) + 1,
                    "data": {"image": f"/data/local-files/?d=project/{name}/{t:05d}.png"},
                    "annotations": [
                        {"id": 1, "was_cancelled": True, "result": []},
                        {"id": 2, "was_cancelled": False, "result": regions},
                    ],
                }
            )
    save_json(root / "project-1.json", tasks)
    return root


def make_labelme(root: Path, videos: Iterable[str] = "ab", num_frames: int = 6) -> Path:
    """Write LabelMe files: a polygon and a mask with group ids, on all frames but frame 3."""
    for name in videos:
        for t in range(num_frames):
            save_frame(root / name / f"{t:05d}.png", 10 * t)
            if t == 3:
                continue
            moving, static = both(t)
            x0, y0, x1, y1 = box_of(static)
            with io.BytesIO() as file:
                Image.fromarray(static[y0:y1, x0:x1].astype(np.uint8)).save(file, "PNG")
                text = base64.b64encode(file.getvalue()).decode()
            shapes = [
                {
                    "label": "cell",
                    "points": corners_of(moving),
                    "group_id": 1,
                    "shape_type": "polygon",
                    "flags": {},
                },
                {
                    "label": "cell",
                    "points": [[x0, y0], [x1 - 1, y1 - 1]],
                    "group_id": 2,
                    "shape_type": "mask",
                    "flags": {},
                    "mask": text,
                },
            ]
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": f"{t:05d}.png",
                "imageData": None,
                "imageHeight": SIZE[0],
                "imageWidth": SIZE[1],
            }
            save_json(root / name / f"{t:05d}.json", content)
    return root


def yolo_row(number: int, mask: np.ndarray, end: str = "") -> str:
    """Return a row of YOLO's segmentation format."""
    corners = " ".join(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in corners_of(mask))
    return f"{number} {corners}{end}\n"


def make_yolo(root: Path, videos: Iterable[str] = "ab", num_frames: int = 6) -> Path:
    """Write YOLO's layout with ``data.yaml``; frame 3 has no text file."""
    for name in videos:
        for t in range(num_frames):
            save_frame(root / "images" / f"{name}_{t:03d}.png", 10 * t)
            if t != 3:
                text = "".join(yolo_row(n, mask) for n, mask in enumerate(both(t)))
                (root / "labels").mkdir(exist_ok=True)
                (root / "labels" / f"{name}_{t:03d}.txt").write_text(text)
    (root / "data.yaml").write_text("path: .\ntrain: images\nnames:\n  0: one\n  1: two\n")
    return root
