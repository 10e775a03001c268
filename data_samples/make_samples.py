"""Render the sample dataset: ``python data_samples/make_samples.py OUT``.

Clips are stored in two formats with the same frames: DAVIS layout (palette masks, lists in
ImageSets) and COCO JSON. The video in ``raw/films`` has no masks. Every call renders the same
scenes, but pixels may differ between versions of the renderer. Requires the extra render; see
docs/rendering.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scenes.writing import PARTIAL, add_to_coco, coco_entries, copied_iou, write_clip

from sam2kit.utils.errors import SAM2KitError
from sam2kit.utils.files import write_text
from sam2kit.viz.video_writer import save_mp4

SEED = 2110
SIZE = (256, 384)
NUM_FRAMES = 24
RENDER_SCALE = 2.0
JPEG_QUALITY = 82
POLYGON_EVERY = 6  # every sixth clip has polygons in the JSON file, the others have run lengths
FILM = "raw/films/walk.mp4"  # not beside the frames, where it would be read with them


@dataclass(frozen=True)
class Scene:
    """A scene: its figures and fixed style.

    Attributes:
        name: Name of the clip.
        cast: Figures and sizes; the camera looks at the first figure.
        style: See :class:`scenes.clip.Clip`; everything else is random.
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
MOVING = {"still": 0.0, "noise": 1.5, "bright": True, "occluders": 0}

SCENES = {
    "train": [
        Scene("dog_meadow", (DOG,), MEADOW | MOVING | {"camera": "follow", "share": 0.65}),
        Scene("dog_yard", (DOG,), YARD | MOVING | {"returns": True, "share": 0.55}),
        Scene("dog_posts", (DOG,), MEADOW | MOVING | {"occluders": 2, "share": 0.6}),
        Scene("two_dogs", (DOG, DOG), BEACH | MOVING | {"alike": True, "share": 0.55}, take=1),
        Scene("person_street", (PERSON,), STREET | MOVING | {"camera": "follow", "share": 0.75}),
        Scene("person_room", (PERSON,), ROOM | MOVING | {"share": 0.7, "occluders": 1}),
        Scene("two_people", (PERSON, PERSON), HALL | MOVING | {"alike": False, "share": 0.65}),
        Scene("twins", (PERSON, PERSON), STREET | MOVING | {"alike": True, "share": 0.65}),
        Scene("walking_the_dog", (PERSON, DOG), MEADOW | MOVING | {"share": 0.7}, take=1),
        Scene("rodent_floor", (RODENT,), ROOM | MOVING | {"share": 0.5, "elevation": -20}, take=1),
        Scene(
            "two_rodents", (RODENT, RODENT), YARD | MOVING | {"share": 0.45, "alike": True}, take=1
        ),
        Scene("cars", (("car#3", 1.9), ("car#8", 1.9)), STREET | MOVING | {"share": 0.5}),
        Scene("arm", (("arm", 1.2), ("parcel#4", 0.5)), HALL | MOVING | {"share": 0.6}, take=1),
        Scene("fish", (("fish", 1.0), ("fish", 0.9)), BEACH | MOVING | {"share": 0.5}, take=1),
        Scene("bird", (("bird#5", 1.2),), SNOW | MOVING | {"share": 0.5, "camera": "pan"}),
        Scene("drone", (("drone#1", 0.9), PERSON), HALL | MOVING | {"share": 0.4}, take=1),
    ],
    "val": [
        Scene("dog_park", (DOG,), MEADOW | MOVING | {"camera": "static", "share": 0.5}, take=1),
        Scene("person_hall", (PERSON,), HALL | MOVING | {"occluders": 1, "share": 0.7}),
        Scene("people_snow", (PERSON, PERSON), SNOW | MOVING | {"alike": True, "share": 0.65}),
        Scene(
            "rodent_away",
            (RODENT,),
            ROOM | MOVING | {"look_away": True, "share": 0.45, "camera": "follow"},
        ),
        Scene("person_and_dog", (DOG, PERSON), YARD | MOVING | {"share": 0.5}, take=1),
        Scene("car_turn", (("car#12", 1.9),), STREET | MOVING | {"returns": True, "share": 0.45}),
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
- `{film}`: a video without masks, to try the annotator on:
  `sam2kit annotate data_samples/{film}`.

| clip | split | shows | copied mask |
| --- | --- | --- | --- |
{table}

The last column is the mean IoU of each object's first mask, copied to the later frames; the lower,
the more the object moves. Its mean is {copy:.2f} on the validation clips.

Rendered by `python data_samples/make_samples.py data_samples`, which contains the seeds
(`docs/rendering.md`); `render_training_set.py` renders thousands of such clips. The models of the
dog, the rodent, the people and the machines are those of dm_control (Google DeepMind, Apache 2.0),
or are made of simple shapes here; all surroundings and most surfaces are generated. The clips are
under Apache 2.0 too.
"""


def make_samples(out: Path, names: list[str] | None = None, processes: int = 1) -> None:
    """Write the sample dataset to ``out``, which is created if missing.

    Args:
        out: Directory of the dataset.
        names: Clips to render, without lists, JSON and README. If None (default), write everything.
        processes: Number of processes.

    Raises:
        DataError: A package of the renderer is missing.
    """
    import scenes.simulator  # noqa: F401  reports missing packages before processes start

    chosen = [s for split in SCENES.values() for s in split if names is None or s.name in names]
    chosen += [FILMED] if names is None else []
    jobs = [(out, scene) for scene in chosen]
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for name in pool.imap_unordered(_write_scene, jobs):
                print(name, flush=True)
    else:
        for name in map(_write_scene, jobs):
            print(name, flush=True)
    (out / PARTIAL).rmdir()
    if names is None:
        describe(out)


def _write_scene(job: tuple[Path, Scene]) -> str:
    """Render and write one clip, and return its name."""
    out, scene = job
    take = render(scene)
    if scene.name == FILMED.name:
        (out / FILM).parent.mkdir(parents=True, exist_ok=True)
        save_mp4(out / FILM, list(take.frames))
    else:
        write_clip(out, scene.name, take.frames, take.ids, JPEG_QUALITY)
    return scene.name


def describe(out: Path) -> None:
    """Write lists, COCO JSON and README for the clips in ``out``."""
    rows, copied = [], {}
    (out / "ImageSets").mkdir(parents=True, exist_ok=True)
    for split, scenes in SCENES.items():
        content, scores = coco_entries(), []
        for number, scene in enumerate(scenes):
            files = sorted((out / "Annotations" / scene.name).glob("*.png"))
            ids = np.stack([np.array(Image.open(file)) for file in files])
            add_to_coco(content, scene.name, ids, number % POLYGON_EVERY == 0)
            scores.append(copied_iou(ids))
            shown = ", ".join(name.split("#")[0] for name, _ in scene.cast)
            rows.append(f"| {scene.name} | {split} | {shown} | {scores[-1]:.2f} |")
        copied[split] = np.mean(scores)
        write_text(out / "ImageSets" / f"{split}.txt", "".join(f"{s.name}\n" for s in scenes))
        write_text(out / f"{split}.json", json.dumps(content, separators=(",", ":")) + "\n")
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
    write_text(out / "README.md", text)


def main() -> None:
    """Parse the command line and write the dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("clips", nargs="*", help="names of clips to render (everything)")
    parser.add_argument("--processes", type=int, default=2, help="number of processes (2)")
    arguments = parser.parse_args()
    try:
        make_samples(arguments.out, arguments.clips or None, arguments.processes)
    except SAM2KitError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
