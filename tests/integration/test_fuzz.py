"""Randomly corrupted input files either load or raise one short error of sam2kit.

``SAM2KIT_FUZZ_CASES=2000 pytest tests/integration/test_fuzz.py`` tries 2,000 cases for each kind of
file. Each case has limits of time and memory. ``fuzz_helpers`` has the strategies.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_helpers import (
    SIZE,
    everything,
    make_coco,
    make_davis,
    make_sav,
    make_ytvis,
    save_json,
    save_palette,
    save_video,
    square,
    training_videos,
)
from fuzz_helpers import as_json, cases, changed
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from stack_helpers import make_ctc, make_dicom, make_frames, make_nifti, make_npz, make_stacks
from tool_helpers import make_cvat, make_label_studio, make_labelme, make_yolo

from sam2kit.config.loading import load_config, to_yaml
from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data import (
    AcceptedFrame,
    COCODataset,
    VideoDataset,
    add_to_training_set,
    open_source,
)
from sam2kit.data.label_image import read_label_image
from sam2kit.data.pictures import image_size, read_labels, read_picture
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.corrected import CorrectedSource
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.mask_values import read_colours
from sam2kit.data.splits import Splits, SplitVideo, read_splits
from sam2kit.data.training_set import read_provenance
from sam2kit.data.writers import coco_annotation, coco_image
from sam2kit.evaluation.compare_runs import (
    comparison_figure,
    comparison_rows,
    comparison_warnings,
    find_runs,
    leaderboard_rows,
)
from sam2kit.models.checkpoint_io import write_checkpoint
from sam2kit.models.checkpoints import create_sam2_model, load_model
from sam2kit.models.feature_cache import FeatureCache, describe
from sam2kit.models.transformers_format import CONFIG_FILE, WEIGHTS_FILE
from sam2kit.pipeline.status import read_status
from sam2kit.pipeline.sweep import _read_definition, _Sweep
from sam2kit.prompts.annotations import (
    AnnotationStore,
    StoredObject,
    StoredPrompt,
    TrackedMask,
    VideoState,
)
from sam2kit.prompts.io import load_video_prompts
from sam2kit.tracking.results import read_records, write_combined
from sam2kit.training.loggers import last_values
from sam2kit.training.resume import DATA_KEY, check_resume
from sam2kit.utils.errors import SAM2KitError
from sam2kit.viz.plots import training_curves

CASES = int(os.environ.get("SAM2KIT_FUZZ_CASES", "18"))
MAX_MEMORY = 2**30  # bytes that one case may allocate
MAX_SECONDS = 10  # of one case, in time of the processor: other programs may be running
MAX_WAIT = 120  # seconds by the clock
MAX_ERROR = 1000  # characters

# No example database, and derandomized: every run tries the same cases. Shrinking a case would take
# minutes; the traceback of the original one is as good.
fuzz_settings = settings(
    phases=[Phase.generate],
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)


@pytest.fixture(autouse=True)
def no_side_effects(tmp_path):
    """Check that no other file was changed."""
    outside = tmp_path.parent / f"{tmp_path.name}-secret.png"
    outside.write_bytes(b"secret")
    files = sorted(tmp_path.parent.iterdir())
    yield
    assert sorted(tmp_path.parent.iterdir()) == files and outside.read_bytes() == b"secret"


class TooSlow(BaseException):
    """A case took too long. No Exception, because the package may turn those into its own."""


@contextmanager
def limits():
    """Raise TooSlow after MAX_SECONDS or MAX_WAIT, and MemoryError above MAX_MEMORY."""

    def stop(number, frame):
        raise TooSlow

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.ITIMER_PROF: MAX_SECONDS, signal.ITIMER_REAL: MAX_WAIT}
    numbers = (signal.SIGPROF, signal.SIGALRM)
    handlers = {number: signal.signal(number, stop) for number in numbers}
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, memory[1]))
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def loads(read: Callable[[], Any]) -> bool:
    """Return whether reading succeeds; errors other than sam2kit's make the test fail."""
    try:
        with limits():
            read()
        return True
    except SAM2KitError as error:
        assert 0 < len(str(error)) < MAX_ERROR
        return False


def fuzz(files: list[Path], read: Callable[[], Any], loads_unchanged: bool = True) -> None:
    """Change or damage one of the files per case, and read them.

    Args:
        files: their undamaged content is there.
        read: called once per case.
        loads_unchanged: False: ``read`` rejects even the undamaged files.
    """
    contents = [file.read_bytes() for file in files]
    assert loads(read) == loads_unchanged

    @fuzz_settings
    @given(st.data())
    def run(data):
        k = data.draw(st.integers(0, len(files) - 1))
        files[k].write_bytes(data.draw(cases(contents[k], files[k].suffix)))
        try:
            loads(read)
        finally:
            files[k].write_bytes(contents[k])

    run()


# --- Every format of data ------------------------------------------------------------------------


def make_training_set(root, format="davis"):
    video = save_video(root.parent / "a.mp4", [0, 10, 20])
    frame = AcceptedFrame(0, {1: square(0, 0)}, {1: "click"}, "nano")
    add_to_training_set(root, open_source(video), 0, [frame], format=format)


def make_films(root):
    save_video(root / "a.mp4", [0, 50, 100])
    for t in range(3):
        save_palette(root / "masks" / "a" / f"{t:05d}.png", square(0, 2 * t))


# The dataset, its type, and files to change, one per pattern.
FORMATS: dict[str, tuple[Callable[[Path], Any], str, list[str]]] = {
    "training_set": (make_training_set, "", ["training_set.json", "Annotations/a/*.png"]),
    "training_set_coco": (
        partial(make_training_set, format="coco"),
        "training_set",
        ["training_set.json", "annotations.json"],
    ),
    "video": (
        lambda root: make_davis(root, {"a": 2}, ending=".png"),
        "",
        ["JPEGImages/**/00001.png", "Annotations/**/00001.png"],
    ),
    "files": (make_films, "", ["a.mp4", "masks/a/00001.png"]),
    "sav": (make_sav, "", ["**/*_manual.json", "**/*.mp4"]),
    "tiff": (lambda root: make_stacks(root, ("a",)), "", ["a.tif", "a_labels.tif"]),
    "tiff_frames": (lambda root: make_frames(root, ("a",)), "tiff", ["a/*_2.tif", "a/masks/*_2_*"]),
    "ctc": (
        lambda root: make_ctc(root, ("01",)),
        "",
        ["**/man_track.txt", "**/t000.tif", "**/man_track001.tif", "**/man_seg002.tif"],
    ),
    "nifti": (lambda root: make_nifti(root, ("a",), ".nii"), "", ["a.nii", "a_seg.nii"]),
    "nifti_gz": (lambda root: make_nifti(root, ("a",)), "nifti", ["a.nii.gz", "a_seg.nii.gz"]),
    "npz": (lambda root: make_npz(root, ("a",)), "", ["a.npz"]),
    "dicom": (lambda root: make_dicom(root, ("a",)), "", ["a/IM001.dcm", "a/IM003.dcm"]),
    "cvat": (lambda root: make_cvat(root, "a", 3), "", ["**/annotations.xml"]),
    "label_studio": (lambda root: make_label_studio(root, "a", 3), "", ["project-1.json"]),
    "labelme": (lambda root: make_labelme(root, "a", 3), "", ["a/00001.json"]),
    "yolo": (lambda root: make_yolo(root, "a", 3), "", ["labels/a_001.txt", "data.yaml"]),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_corrupted_data(tmp_path, kind):
    make, type, patterns = FORMATS[kind]
    root = tmp_path / "data"
    make(root)
    files = [sorted(root.glob(pattern))[0] for pattern in patterns]
    config = DatasetConfig(type=type or kind, data_path=str(root))
    fuzz(files, lambda: everything(training_videos(config, 0)))


@pytest.mark.parametrize("make", [make_coco, make_ytvis])
def test_corrupted_coco(tmp_path, make):
    file = save_json(tmp_path / "a.json", make(tmp_path, num_frames=2))
    fuzz([file], lambda: everything(COCODataset(file, tmp_path)))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".webp", ".ppm", ".gif"])
def test_corrupted_pictures(tmp_path, ending):
    file, pixels = tmp_path / f"a{ending}", np.zeros((*SIZE, 3), np.uint8)
    pixels[square(2, 2)] = 200
    Image.fromarray(pixels).save(file)

    def read():
        for function in (read_picture, read_labels, image_size):
            loads(partial(function, file))
        loads(lambda: read_label_image(file, SIZE))
        read_picture(file)

    fuzz([file], read)


# --- Prompts, corrections, annotations -----------------------------------------------------------


def test_corrupted_prompt_files(tmp_path):
    entry = {"video": "v", "object_id": 1, "frame_index": 0}
    content = {
        "version": 1,
        "image_size": [32, 32],
        "prompts": [
            {**entry, "kind": "point", "points": [[3.0, 4.0]], "labels": [1]},
            {**entry, "object_id": "b", "kind": "box", "box": [1.0, 2.0, 9.0, 8.0]},
            {
                **entry,
                "frame_index": 2,
                "kind": "mask",
                "mask": encode_mask(square(2, 2, size=(32, 32))),
            },
        ],
    }
    file = save_json(tmp_path / "prompts.json", content)
    fuzz([file], lambda: load_video_prompts(file, "v", 4, 32))


def test_corrupted_corrections(tmp_path):
    make_davis(tmp_path / "data", {"a": 3})
    source, file = VideoDataset(tmp_path / "data"), tmp_path / "corrections.jsonl"
    mask = encode_mask(square(2, 2))["counts"]
    entry = {"version": 1, "video": "a", "objects": [{"id": 1, "counts": mask}], "size": SIZE}
    file.write_bytes(b"".join(as_json(entry | {"frame_index": t}) + b"\n" for t in range(3)))
    fuzz([file], lambda: everything(CorrectedSource(source, file)))


def test_corrupted_annotations(tmp_path):
    mask = encode_mask(square(2, 2))["counts"]
    prompt = StoredPrompt(1, 0, points=[(3, 4)], labels=[1], box=(1, 2, 9, 8), mask=mask)
    state = VideoState("a", SIZE, 3, objects=[StoredObject(1, "x", (1, 2, 3))], prompts=[prompt])
    state.accepted = [0, 1]
    folder = tmp_path / "annotations"
    store = AnnotationStore(folder)
    store.save("a", state)
    tracked = TrackedMask(mask, 1.0, "nano")
    store.save_tracked("a", {t: [(1, tracked)] for t in range(3)})
    store.close()

    def read():
        store = AnnotationStore(folder)
        try:
            store.videos(), store.load("a"), store.load_tracked("a"), list(store.accepted("a"))
            store.save_tracked("a", {1: [(1, tracked)]})
        finally:
            store.close()

    fuzz(sorted(folder.glob("a-*")), read)


# --- Configurations ------------------------------------------------------------------------------


def test_corrupted_configurations(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(Config(), comments=False))
    fuzz([file], lambda: load_config(file))


@pytest.mark.parametrize("line", ["_target_: os.system", "model: {_target_: os.system}"])
def test_configuration_cannot_instantiate_a_class(tmp_path, line):
    (tmp_path / "c.yaml").write_text(line)
    assert not loads(lambda: load_config(tmp_path / "c.yaml"))


def test_configuration_cannot_run_code(tmp_path):
    created = tmp_path / "created"
    (tmp_path / "c.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{created}']")
    assert not loads(lambda: load_config(tmp_path / "c.yaml")) and not created.exists()


# What changed values cannot express.
LINES = [
    "3",
    "null: 1",
    "defaults: 3",
    "defaults: [a, {b: c}]",
    "defaults: [{1: 2}]",
    "a: &a {b: *a}",
    "output_dir: '${'",
    "output_dir: ${oc.env:X,${seed}}",
    "seed: ${seed}",
    "- a",
    "? [a, b]\n: c",
    "model: !!binary aGk=",
    "seed: 2026-11-29",
    "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e]",
    "x: " + "[" * 3000,
    "dataset: {synthetic_videos: 1.0e+12, image_size: 1000000000, num_workers: 1000000}",
    "model: {trainable_modules: {a: b}}",
    "\t",
    "...",
    "---",
]


@st.composite
def with_lines(draw, content):
    """Insert hostile lines into a text, at the indentation of the line before."""
    lines = content.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(lines)))
        indent = draw(st.sampled_from(["", "", "  "]))
        text = draw(st.sampled_from(LINES))
        lines[position:position] = [indent + line for line in text.splitlines()]
    return "\n".join(lines)


def test_configurations_with_hostile_lines(tmp_path):
    file = tmp_path / "c.yaml"
    content = "seed: 1\ndataset:\n  type: synthetic\n  batch_size: 2\nmodel:\n  size: nano\n"

    @fuzz_settings
    @given(with_lines(content))
    def run(text):
        file.write_text(text)
        loads(lambda: load_config(file))

    run()


# --- Checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_corrupted_checkpoints(tmp_path, ending):
    file = tmp_path / f"c{ending}"
    if ending == ".ckpt":
        write_checkpoint({"state_dict": {"model.a": torch.zeros(3)}, "sam2kit_config": {}}, file)
    else:
        save_file({"a": torch.zeros(3)}, file)
    fuzz([file], lambda: load_model(file), loads_unchanged=False)  # it is no complete model


def test_corrupted_models_of_transformers(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / WEIGHTS_FILE)
    save_json(tmp_path / CONFIG_FILE, {"image_size": [64, 64], "num_maskmem": 7})
    files = [tmp_path / WEIGHTS_FILE, tmp_path / CONFIG_FILE]
    fuzz(files, lambda: load_model(tmp_path), loads_unchanged=False)


def test_corrupted_positions_of_runs(tmp_path):
    config = Config()
    config.trainer.resume_from = str(tmp_path / "last.ckpt")
    data = {"videos": "3 videos", "digest": "x", "devices": 1}
    content = {
        "sam2kit_config": yaml.safe_load(to_yaml(Config(), comments=False)),
        "global_step": 3,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": True}}},
        "callbacks": {"EarlyStopping": {"wait_count": 0}},
        DATA_KEY: data | {"epoch": 0, "clips": 4},
    }

    @fuzz_settings
    @given(changed(content))
    def run(changed_content):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(
                {"state_dict": {"model.a": torch.zeros(3)}, **changed_content},
                tmp_path / "last.ckpt",
            )
        loads(lambda: check_resume(config, data))

    run()


# --- Results and states --------------------------------------------------------------------------


def means():
    scores = dict.fromkeys(("J", "F", "J&F"), 0.5) | {"false_absence": 0.0, "recovery": None}
    return scores | {"scored_objects": 3, "J&F_interval": [0.4, 0.6]}


METRICS = {
    "schema_version": 2,
    "convention": {"name": "prompted"},
    "protocol": {"protocol": "mask"},
    "trackers": {"after training": means(), "b": means() | {"J&F_interval": [None, None]}},
    "videos": {"a": {}, "b": {}},
}
TRIAL = {"rank": 1, "name": "001", "overrides": ["seed=1"], "state": "done", "error": None}
TRIAL |= {"J&F": 0.5, "J&F_interval": [0.4, 0.6], "run_dir": "trials/001"}
STAGE = {"state": "running", "started": "2026-11-29T12:00:00+00:00"}
TRIALS = [{"name": name, "overrides": ["seed=1"]} for name in ("001_seed-1", "002_seed-2")]
SWEEP = {"schema_version": 1, "parameters": {}, "stages": [3], "trials": TRIALS}
TRACK = {"name": "a", "video": "a.mp4", "video_name": "a", "finished": True, "checkpoint": "nano"}
TRACK |= {"prompted": [{"object_id": 1, "frame_index": 0, "kind": "box"}], "digest": "0"}
SPLITS = Splits((SplitVideo("a", (0, 4), ("0",)),), (SplitVideo("b", (0, 9)),)).to_dict()
COLOURS = {"cell": [255, 0, 0], "background": [0, 0, 0]}


def compare(folder):
    runs = find_runs([folder])
    comparison_rows(runs), comparison_figure(runs), comparison_warnings(runs * 2)


def sweep(folder):
    trials = _Sweep(folder, _read_definition(folder / "sweep.json"))
    rows = trials.write_leaderboard()
    for row in rows:  # no trial is outside
        assert (folder / row["run_dir"]).resolve().is_relative_to(folder)


RESULTS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "metrics.json": (METRICS, compare),
    "leaderboard.json": (
        {"schema_version": 1, "metric": "J&F", "trials": [TRIAL, TRIAL | {"error": "x\ny"}]},
        lambda folder: leaderboard_rows([folder]),
    ),
    "status.json": (
        {"schema_version": 1, "state": "running", "stages": {"01_inspect_data": STAGE}},
        read_status,
    ),
    "sweep.json": (SWEEP, sweep),
    "splits.json": (SPLITS, lambda folder: read_splits(folder).to_dict()),
    "objects.json": (
        {"1": "cat", "2": 7},
        lambda folder: read_object_names(folder / "objects.json"),
    ),
    "colours.json": (COLOURS, lambda folder: read_colours(str(folder / "colours.json"))),
    "labelmap.txt": (
        "# label:color:parts\ncell:255,0,0::\nbackground:0,0,0::\n",
        lambda folder: read_colours(str(folder / "labelmap.txt")),
    ),
    "split.txt": (
        "a\nb\n/JPEGImages/480p/a/00000.jpg /Annotations/480p/a/00000.png\n",
        lambda folder: read_split(str(folder / "split.txt"), folder, ["a", "b"]),
    ),
    "metrics.csv": (
        "epoch,loss,learning_rate,step,val_loss\n0,0.5,1e-5,1,\n0,,,1,0.7\n1,0.3,1e-5,2,\n",
        lambda folder: (last_values(folder), training_curves(folder / "metrics.csv")),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_corrupted_results(tmp_path, name):
    content, read = RESULTS[name]
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    fuzz([file], lambda: read(tmp_path))


def test_corrupted_tracks(tmp_path):
    for name in "ab":
        folder = tmp_path / "videos" / name
        save_json(folder / "track.json", TRACK | {"name": name})
        images = [coco_image(t + 1, name, t, f"{name}/{t}.png", SIZE) for t in range(2)]
        masks = [coco_annotation(t, t, 1, encode_mask(square(0, t))) for t in (1, 2)]
        content = {"images": images, "annotations": masks, "categories": []}
        save_json(folder / "masks.json", content)

    def read():
        for record in read_records(tmp_path):
            list(record.frames())
        write_combined(tmp_path)

    fuzz([tmp_path / "videos" / "a" / name for name in ("track.json", "masks.json")], read)


@pytest.mark.parametrize("format", ["davis", "coco"])
def test_corrupted_training_sets_to_add_to(tmp_path, format):
    original, root = tmp_path / "original", tmp_path / "set"
    make_training_set(original, format)
    source = open_source(tmp_path / "a.mp4")
    frame = AcceptedFrame(1, {1: square(2, 2)}, {1: "box"}, "nano")
    files = [original / "training_set.json", *original.glob("*/*.json")]
    files += original.glob("annotations.json")

    def read():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(original, root)
        read_provenance(root, "a")
        add_to_training_set(root, source, 0, [frame])

    fuzz(files, read)


def test_corrupted_feature_caches(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    config = Config()
    config.model.size, config.model.checkpoint, config.dataset.image_size = "nano", "random", 32
    model = create_sam2_model(config).eval()
    frames = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    cache.encode(model, frames)
    files = [next(cache.folder.glob("*/encoder.json")), next(cache.folder.glob("*/??/*"))]

    def read():
        cache = FeatureCache(tmp_path / "cache")
        describe(cache.folder)
        cache.encode(model, frames)

    fuzz(files, read)
