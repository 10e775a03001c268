"""Commands on small data, for tests that disturb them: kills, full disks, few open files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_helpers import SIZE, make_davis, save_video, square

SMALL = ["dataset.type=synthetic", "dataset.image_size=32", "dataset.video_clip_length=2"]
SMALL += ["dataset.synthetic_videos=4", "dataset.batch_size=2", "valdataset.synthetic_videos=1"]
SMALL += ["model.size=nano", "trainer.accelerator=cpu"]


def train(root: Path, out: Path) -> list[str]:
    command = ["train", "--run-dir", str(out), "--resume", "auto", *SMALL, "trainer.audit=off"]
    command += ["trainer.max_epochs=2", "trainer.checkpoint_minutes=0", "dataset.num_workers=1"]
    command += ["model.checkpoint=random", "trainer.keep_checkpoints=1"]
    return [*command, "trainer.log_every_n_steps=1"]


def features(root: Path, out: Path) -> list[str]:
    folder = f"features.folder={out}"
    return ["features", *SMALL, "model.checkpoint=nano", folder, "dataset.num_workers=0"]


def evaluate(root: Path, out: Path) -> list[str]:
    data = make_davis(root / "data", {"a": 3, "b": 3})
    command = ["evaluate", "--model-checkpoint", "nano", "--output-dir", str(out)]
    command += [f"valdataset.data_path={data}", "dataset.image_size=64", "dataset.type=video"]
    return [*command, "trainer.accelerator=cpu", "features.cache=off"]


def track(root: Path, out: Path) -> list[str]:
    films = [save_video(root / "films" / f"{n}.mp4", [0, 50, 100, 150]) for n in "ab"]
    command = ["track", *map(str, films), "--box", "4,8,23,20", "--output-dir", str(out)]
    return [*command, "--model-checkpoint", "nano", "--accelerator", "cpu"]


def convert(root: Path, out: Path) -> list[str]:
    data = make_davis(root / "data", {"a": 4, "b": 4})
    return ["convert", str(data), str(out), "--to", "coco-video"]


def export(root: Path, out: Path) -> list[str]:
    return ["export", "nano", f"{out}.pt"]


def doctor(root: Path, out: Path) -> list[str]:
    data = make_davis(root / "data", {"a": 4, "b": 4})
    return ["doctor", str(data), "--html", f"{out}.html", "--json", f"{out}.json"]


def training_set(root: Path, out: Path) -> list[str]:
    """Add the frames of two annotated videos, which are copied."""
    from sam2kit.data.rle import encode_mask
    from sam2kit.prompts.annotations import AnnotationStore, StoredObject, StoredPrompt, VideoState

    store = AnnotationStore(root / "annotations")
    for name in "ab":
        film = save_video(root / "films" / f"{name}.mp4", [0, 50, 100, 150])
        masks = [encode_mask(square(0, 2 * t))["counts"] for t in range(4)]
        prompts = [StoredPrompt(1, t, "painted", mask=mask) for t, mask in enumerate(masks)]
        objects = [StoredObject(1)]
        store.save(
            name, VideoState(name, SIZE, 4, objects=objects, prompts=prompts, path=str(film))
        )
    store.close()
    command = ["training-set", str(root / "annotations"), "--to", str(out), "--copy"]
    return [*command, "--frames", "all"]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "train": train,
    "evaluate": evaluate,
    "features": features,
    "track": track,
    "convert": convert,
    "export": export,
    "doctor": doctor,
    "training-set": training_set,
}
"""By name, a function of a folder for inputs and the output, which is a folder or the beginning of
the names of files. It writes the inputs, and returns the arguments of ``sam2kit``."""
