"""Render the sample data set: ``python data_samples/make_samples.py OUT``.

The clips are stored in two formats that share the frames: DAVIS layout (palette masks, lists under
ImageSets) and COCO JSON. ``film.mp4`` has no masks. Every call renders the same scenes; pixels may
differ between versions of the renderer. Needs the extra render: docs/rendering.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scenes.writing import add_to_coco, coco_entries, copied_iou, write_clip

from sam2kit.utils.errors import SAM2KitError
from sam2kit.viz.video_writer import save_mp4

SEED = 2110
SIZE = (256, 384)
NUM_FRAMES = 24
RENDER_SCALE = 2.0
JPEG_QUALITY = 82
POLYGON_EVERY = 6  # every sixth clip has polygons in the JSON, the others have run lengths
FILM = "film.mp4"


@dataclass(frozen=True)
class Scene:
    """A scene: its figures and their sizes, and what is fixed about it.

    Attributes:
        name: Name of the clip.
        cast: Figures and sizes; the camera looks at the first.
        style: See :class:`scenes.clip.Clip`; the rest is drawn at random.
        take: Number of the random plan.
        seconds: Time from the first frame to the last.
    """

    name: str
    cast: tuple[tuple[str, float], ...]
    style: dict[str, Any] = field(default_factory=dict)
    take: int = 0
    seconds: float = 2.2


DOG, PERSON, RODENT = ("dog", 1.2), ("person", 1.75), ("rodent", 1.0)
MEADOW = {"indoors": False, "ground": "grass", "walls": "leaves"}
YARD = {"indoors": False, "ground": "earth", "walls": "brick"}
STREET = {"indoors": False, "ground": "asphalt", "walls": "concrete"}
BEACH = {"indoors": False, "ground": "sand", "walls": None}
SNOW = {"indoors": False, "ground": "snow", "walls": "leaves"}
ROOM = {"indoors": True, "ground": "wood", "walls": "paint"}
HALL = {"indoors": True, "ground": "tile", "walls": "concrete"}
MOVING = {"still": 0.0, "noise": 1.5}

SCENES = {
    "train": [
        Scene("dog_meadow", (DOG,), MEADOW | MOVING | {"camera": "follow", "share": 0.5}),
        Scene("dog_yard", (DOG,), YARD | MOVING | {"returns": True, "share": 0.4}),
        Scene("dog_posts", (DOG,), MEADOW | MOVING | {"occluders": 2, "share": 0.45}),
        Scene("two_dogs", (DOG, DOG), BEACH | MOVING | {"alike": True, "share": 0.42}),
        Scene("person_street", (PERSON,), STREET | MOVING | {"camera": "follow", "share": 0.6}),
        Scene("person_room", (PERSON,), ROOM | MOVING | {"share": 0.6, "occluders": 1}),
        Scene("two_people", (PERSON, PERSON), HALL | MOVING | {"alike": False, "share": 0.5}),
        Scene("twins", (PERSON, PERSON), STREET | MOVING | {"alike": True, "share": 0.5}),
        Scene("walking_the_dog", (PERSON, DOG), MEADOW | MOVING | {"share": 0.6}),
        Scene("rodent_floor", (RODENT,), ROOM | MOVING | {"share": 0.35, "elevation": -20}),
        Scene("two_rodents", (RODENT, RODENT), YARD | MOVING | {"share": 0.32, "alike": True}),
        Scene("cars", (("car#3", 1.9), ("car#8", 1.9)), STREET | MOVING | {"share": 0.32}),
        Scene("arm", (("arm", 1.2), ("parcel#4", 0.5)), HALL | MOVING | {"share": 0.6}),
        Scene("fish", (("fish", 1.0), ("fish", 0.9)), BEACH | MOVING | {"share": 0.4}),
        Scene("bird", (("bird#5", 1.2),), SNOW | MOVING | {"share": 0.35, "camera": "pan"}),
        Scene("drone", (("drone#1", 0.9), PERSON), HALL | MOVING | {"share": 0.3}),
    ],
    "val": [
        Scene("dog_park", (DOG,), MEADOW | MOVING | {"camera": "static", "share": 0.4}),
        Scene("person_hall", (PERSON,), HALL | MOVING | {"occluders": 1, "share": 0.55}),
        Scene("people_snow", (PERSON, PERSON), SNOW | MOVING | {"alike": True, "share": 0.5}),
        Scene("rodent_away", (RODENT,), ROOM | MOVING | {"look_away": True, "share": 0.3}),
        Scene("person_and_dog", (DOG, PERSON), YARD | MOVING | {"share": 0.4}),
        Scene("car_turn", (("car#12", 1.9),), STREET | MOVING | {"returns": True, "share": 0.3}),
    ],
}
FILMED = Scene("film", (PERSON, DOG), MEADOW | MOVING | {"camera": "follow", "share": 0.55})

README = """# Sample data

Rendered clips of {frames} frames, {width}x{height} pixels, in which animals, people and machines
walk, turn, hide behind each other and leave the view: {train} for training, {val} for validation.
They are used by the quick start and the documentation; none of them is filmed.

- DAVIS layout: `JPEGImages/VIDEO/00000.jpg`, `Annotations/VIDEO/00000.png` (palette PNG, pixel
  values are object ids), `ImageSets/train.txt` and `val.txt`. In the configuration:
  `dataset.data_path=data_samples dataset.split=train valdataset.split=val`.
- COCO JSON for the same frames: `train.json`, `val.json` (`video_id`, `order_in_video`, `track_id`;
  run lengths, and in every sixth clip polygons for masks without holes). In the configuration:
  `dataset.type=coco dataset.data_path=data_samples` with
  `dataset.annotation_file=data_samples/train.json` and
  `valdataset.annotation_file=data_samples/val.json`.
- `{film}`: a video without masks, to try the annotator on: `sam2kit annotate data_samples/{film}`.

| clip | split | objects | copied mask |
| --- | --- | --- | --- |
{table}

The last column is the mean IoU of each object's first mask, copied to the later frames; the lower,
the more the object moves. Its mean is {copy:.2f} on the validation clips.

Rendered by `python data_samples/make_samples.py data_samples`, which contains the seeds
(`docs/rendering.md`); `render_training_set.py` renders thousands of such clips. The models of the
dog, the rodent, the people and the machines are those of dm_control (Google DeepMind, Apache 2.0),
or are made of simple shapes here; all surroundings and most surfaces are generated. The clips are
dedicated to the public domain under CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/).
"""


def make_samples(out: Path, names: list[str] | None = None) -> None:
    """Write the sample data set to ``out``, which is created if missing.

    Args:
        out: Folder of the data set.
        names: Clips to render, without lists, JSON and README. None (default): everything.

    Raises:
        DataError: A package of the renderer is missing.
    """
    rows, copied = [], {}
    for split, scenes in SCENES.items():
        content, scores = coco_entries(), []
        for number, scene in enumerate(scenes):
            if names is not None and scene.name not in names:
                continue
            take = render(scene)
            write_clip(out, scene.name, take.frames, take.ids, JPEG_QUALITY)
            add_to_coco(content, scene.name, take.ids, number % POLYGON_EVERY == 0)
            scores.append(copied_iou(take.ids))
            objects = ", ".join(name.split("#")[0] for name in take.names)
            rows.append(f"| {scene.name} | {split} | {objects} | {scores[-1]:.2f} |")
            print(rows[-1], flush=True)
        copied[split] = np.mean(scores) if scores else 1.0
        if names is None:
            (out / "ImageSets").mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{scene.name}\n" for scene in scenes)
            (out / "ImageSets" / f"{split}.txt").write_text(lines)
            (out / f"{split}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    (out / "partial").rmdir()
    if names is None:
        save_mp4(out / FILM, list(render(FILMED).frames))
        _write_readme(out, rows, float(copied["val"]))


def render(scene: Scene):
    """Render one scene: a :class:`scenes.clip.Take`."""
    from scenes.clip import make_clip
    from scenes.stage import Stage
    from scenes.surfaces import Surfaces

    with Stage(list(scene.cast), SIZE, RENDER_SCALE, shadow=2048) as stage:
        seed = (SEED, *scene.name.encode(), scene.take)
        return make_clip(stage, seed, Surfaces(None), NUM_FRAMES, scene.seconds, **scene.style)


def _write_readme(out: Path, rows: list[str], copied: float) -> None:
    text = README.format(
        frames=NUM_FRAMES,
        width=SIZE[1],
        height=SIZE[0],
        train=len(SCENES["train"]),
        val=len(SCENES["val"]),
        film=FILM,
        table="\n".join(rows),
        copy=copied,
    )
    (out / "README.md").write_text(text)


def main() -> None:
    """Parse the command line and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("clips", nargs="*", help="names of clips to render (everything)")
    arguments = parser.parse_args()
    try:
        make_samples(arguments.out, arguments.clips or None)
    except SAM2KitError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
