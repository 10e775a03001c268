"""Randomly corrupted input files either load or raise one short error of sam2kit.

``SAM2KIT_FUZZ_CASES=2000 pytest tests/integration/test_fuzz.py`` tries 2,000 cases for each kind of
file. Each case has limits of time and memory.
"""

import copy
import json
import os
import re
import resource
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from data_helpers import (
    SIZE,
    everything,
    make_coco,
    make_davis,
    make_sav,
    save_json,
    save_video,
    square,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack_helpers import make_ctc, make_dicom, make_nifti, make_npz, make_stacks
from tool_helpers import make_cvat, make_label_studio, make_labelme, make_yolo

from sam2kit.config.loading import load_config, to_yaml
from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data import (
    AcceptedFrame,
    COCODataset,
    VideoDataset,
    add_to_training_set,
    build_source,
    open_source,
)
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.corrected import CorrectedSource
from sam2kit.evaluation.compare_runs import (
    comparison_figure,
    comparison_rows,
    comparison_warnings,
    find_runs,
    leaderboard_rows,
)
from sam2kit.models.checkpoint_io import write_checkpoint
from sam2kit.models.checkpoints import load_model
from sam2kit.pipeline.status import read_metrics, read_status
from sam2kit.prompts.annotations import AnnotationStore, StoredObject, StoredPrompt, VideoState
from sam2kit.prompts.io import load_video_prompts
from sam2kit.training.resume import DATA_KEY, check_resume
from sam2kit.utils.errors import SAM2KitError

CASES = int(os.environ.get("SAM2KIT_FUZZ_CASES", "30"))
MAX_MEMORY = 2**30  # bytes that one case may allocate
MAX_SECONDS = 10  # of one case
MAX_ERROR = 1000  # characters

# No example database, and derandomized: every run tries the same cases.
fuzz_settings = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../../secret.png", "/etc/passwd", "..", "", "\0", "1" * 5000, -1, 10**12]),
    st.sampled_from(["x" * 100_000, "a\nb", "${", "${oc.env:HOME}", 1e308, 2**31]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def changed(draw, content):
    """Replace, remove or duplicate one to three values of a document."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        positions = list(nodes(content))
        if not positions:
            return content
        container, key = positions[draw(st.integers(0, len(positions) - 1))]
        match draw(st.sampled_from(["replace", "replace", "remove", "duplicate"])):
            case "replace":
                container[key] = draw(values)
            case "remove":
                del container[key]
            case _ if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
    return content


def nodes(content):
    """Yield the container and the key of every value in a document."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from nodes(content[key])


@st.composite
def damaged(draw, content):
    """Truncate bytes, overwrite some of them, or insert others."""
    offset = draw(st.integers(0, max(len(content) - 1, 0)))
    noise = draw(st.binary(max_size=40))
    damage = draw(st.sampled_from(["truncate", "overwrite", "insert"]))
    if damage == "truncate":
        return content[:offset]
    end = offset + (len(noise) if damage == "overwrite" else 0)
    return content[:offset] + noise + content[end:]


@pytest.fixture(autouse=True)
def no_side_effects(tmp_path):
    """Check that no other file was changed, and that memory stayed within its limit."""
    outside = tmp_path.parent / f"{tmp_path.name}-secret.png"
    outside.write_bytes(b"secret")
    files = sorted(tmp_path.parent.iterdir())
    yield
    assert sorted(tmp_path.parent.iterdir()) == files and outside.read_bytes() == b"secret"


class TooSlow(BaseException):
    """A case took too long. No Exception, because the package may turn those into its own."""


@contextmanager
def limits():
    """Raise TooSlow after MAX_SECONDS, and MemoryError when MAX_MEMORY is exceeded."""

    def stop(number, frame):
        raise TooSlow

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, memory[1]))
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGALRM, handler)


def loads(read, *arguments):
    """Return whether reading succeeds; errors other than sam2kit's make the test fail."""
    try:
        with limits():
            read(*arguments)
        return True
    except SAM2KitError as error:
        assert 0 < len(str(error)) < MAX_ERROR
        return False


def test_corrupted_annotation_files(tmp_path):
    content = make_coco(tmp_path, num_frames=2)
    file = save_json(tmp_path / "a.json", content)
    assert loads(lambda: everything(COCODataset(file, tmp_path)))

    @fuzz_settings
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        loads(lambda: everything(COCODataset(file, tmp_path)))

    run()


def as_json(content):
    return json.dumps(content).encode("utf-8", "replace")


def test_corrupted_masks(tmp_path):
    make_davis(tmp_path, {"a": 2})
    mask = tmp_path / "Annotations" / "a" / "00001.png"
    content = mask.read_bytes()

    @fuzz_settings
    @given(damaged(content))
    def run(data):
        mask.write_bytes(data)
        loads(lambda: everything(VideoDataset(tmp_path)))

    run()


def test_corrupted_configurations(tmp_path):
    file = tmp_path / "c.yaml"
    content = yaml.safe_load(to_yaml(Config(), comments=False))

    @fuzz_settings
    @given(
        st.one_of(
            changed(content).map(lambda c: yaml.safe_dump(c).encode("utf-8", "replace")),
            damaged(yaml.safe_dump(content).encode()),
        )
    )
    def run(text):
        file.write_bytes(text)
        loads(load_config, file)

    run()


@pytest.mark.parametrize("line", ["_target_: os.system", "model: {_target_: os.system}"])
def test_configuration_cannot_instantiate_a_class(tmp_path, line):
    (tmp_path / "c.yaml").write_text(line)
    assert not loads(load_config, tmp_path / "c.yaml")


def test_configuration_cannot_run_code(tmp_path):
    created = tmp_path / "created"
    (tmp_path / "c.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{created}']")
    assert not loads(load_config, tmp_path / "c.yaml") and not created.exists()


def test_corrupted_checkpoints(tmp_path):
    file = tmp_path / "c.ckpt"
    write_checkpoint({"state_dict": {"model.a": torch.zeros(3)}, "sam2kit_config": {}}, file)
    content = file.read_bytes()

    @fuzz_settings
    @given(damaged(content))
    def run(data):
        file.write_bytes(data)
        assert not loads(load_model, file)  # the undamaged file is no complete model either

    run()


def test_corrupted_positions_of_runs(tmp_path):
    config = Config()
    config.trainer.resume_from = str(tmp_path / "last.ckpt")
    data = {"videos": "3 videos", "content": "x", "devices": 1}
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
        loads(check_resume, config, data)

    run()


def test_corrupted_prompt_files(tmp_path):
    file = tmp_path / "prompts.json"
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
                "mask": {"size": [32, 32], "counts": "R13m01O00000010OO1O000000"},
            },
        ],
    }

    @fuzz_settings
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        loads(load_video_prompts, file, "v", 4, 32)

    run()


# --- Configurations as text: what changed values cannot express.

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
        loads(load_config, file)

    run()


# --- Results and states.


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


def compare(folder):
    runs = find_runs([folder])
    comparison_rows(runs), comparison_figure(runs), comparison_warnings(runs * 2)
    read_metrics(folder)


RESULTS = [
    ("metrics.json", METRICS, compare),
    (
        "leaderboard.json",
        {"schema_version": 1, "metric": "J&F", "trials": [TRIAL, TRIAL | {"error": "x\ny"}]},
        lambda folder: leaderboard_rows([folder]),
    ),
    (
        "status.json",
        {"schema_version": 1, "state": "running", "stages": {"01_inspect_data": STAGE}},
        read_status,
    ),
]


@pytest.mark.parametrize(("name", "content", "read"), RESULTS, ids=[r[0] for r in RESULTS])
def test_corrupted_results(tmp_path, name, content, read):
    file = save_json(tmp_path / name, content)
    assert loads(read, tmp_path)

    @fuzz_settings
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        loads(read, tmp_path)

    run()


def test_corrupted_corrections(tmp_path):
    make_davis(tmp_path / "data", {"a": 2})
    source, file = VideoDataset(tmp_path / "data"), tmp_path / "corrections.jsonl"
    mask = encode_mask(square(2, 2))["counts"]
    entry = {"version": 1, "video": "a", "frame_index": 1, "objects": [{"id": 1, "counts": mask}]}
    entry |= {"size": list(SIZE)}

    @fuzz_settings
    @given(st.one_of(changed(entry).map(as_json), damaged(as_json(entry) + b"\n")))
    def run(text):
        file.write_bytes(as_json(entry) + b"\n" + text)
        loads(lambda: everything(CorrectedSource(source, file)))

    run()


def test_corrupted_annotations(tmp_path):
    mask = encode_mask(square(2, 2))["counts"]
    prompt = StoredPrompt(1, 0, points=[(3, 4)], labels=[1], box=(1, 2, 9, 8), mask=mask)
    state = VideoState("a", SIZE, 3, objects=[StoredObject(1, "x", (1, 2, 3))], prompts=[prompt])
    folder = tmp_path / "annotations"
    store = AnnotationStore(folder)
    store.save("a", state)
    store.close()
    (file,) = (path for path in folder.glob("*.json"))
    content = json.loads(file.read_text())

    def read():
        store = AnnotationStore(folder)
        try:
            store.load("a")
        finally:
            store.close()

    assert loads(read)

    @fuzz_settings
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        loads(read)

    run()


# --- Every format of data: one file of a small data set is changed or damaged.


odd_words = st.sampled_from(["1e400", "99999999999", "-0", '"', "<a>" * 70, "&a;", "1,2;3"])


@st.composite
def changed_markup(draw, content):
    """Replace attributes and texts of XML, or the words of a text; drop or repeat parts of it."""
    for _ in range(draw(st.integers(1, 3))):
        spans = [m.span(m.lastindex) for m in re.finditer(r'="([^"]*)"|>([^<>]+)<', content)]
        spans = spans or [m.span() for m in re.finditer(r"\S+", content)]
        if not spans:
            return content
        start, end = draw(st.sampled_from(spans))
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat"])):
            case "replace":
                text = str(draw(st.one_of(st.integers(-5, 40), st.floats(), odd_words, scalars)))
                content = content[:start] + text.replace('"', "&quot;") + content[end:]
            case "remove":
                content = content[:start] + content[end:]
            case _:
                other = draw(st.sampled_from(spans))
                content = content[:start] + content[slice(*other)] + content[start:]
    return content


@st.composite
def damaged_header(draw, content):
    """Set one to three numbers of two or four bytes in the first kilobyte to extreme values."""
    data = bytearray(content)
    numbers = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 60_000]
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.sampled_from([1, 2, 4]))
        position = draw(st.integers(0, max(min(len(data), 1024) - size, 0)))
        value = draw(st.sampled_from(numbers)) % 256**size
        data[position : position + size] = value.to_bytes(
            size, draw(st.sampled_from(["little", "big"]))
        )
    return bytes(data)


def cases(content):
    """Return the strategy of damaged contents of a file, by its form."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return st.one_of(damaged(content), damaged_header(content))
    try:
        return st.one_of(changed(json.loads(text)).map(as_json), damaged(content))
    except ValueError:
        markup = changed_markup(text).map(lambda text: text.encode("utf-8", "replace"))
        return st.one_of(markup, damaged(content))


def make_training_set(root):
    video = save_video(root.parent / "a.mp4", [0, 10, 20])
    frame = AcceptedFrame(0, {1: square(0, 0)}, {1: "click"}, "nano")
    add_to_training_set(root, open_source(video), 0, [frame])


FORMATS = {
    "training_set": (make_training_set, ["training_set.json", "Annotations/a/*.png"]),
    "sav": (lambda root: make_sav(root), ["**/*_manual.json", "**/*.mp4"]),
    "tiff": (lambda root: make_stacks(root, ("a",)), ["a.tif", "a_labels.tif"]),
    "ctc": (lambda root: make_ctc(root, ("01",)), ["**/man_track.txt", "**/t000.tif"]),
    "nifti": (lambda root: make_nifti(root, ("a",), ".nii"), ["a.nii", "a_seg.nii"]),
    "npz": (lambda root: make_npz(root, ("a",)), ["a.npz"]),
    "dicom": (lambda root: make_dicom(root, ("a",)), ["a/IM001.dcm"]),
    "cvat": (lambda root: make_cvat(root, "a", 3), ["**/annotations.xml"]),
    "label_studio": (lambda root: make_label_studio(root, "a", 3), ["project-1.json"]),
    "labelme": (lambda root: make_labelme(root, "a", 3), ["a/00001.json"]),
    "yolo": (lambda root: make_yolo(root, "a", 3), ["labels/a_001.txt", "data.yaml"]),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_corrupted_data(tmp_path, kind):
    make, patterns = FORMATS[kind]
    root = tmp_path / "data"
    make(root)
    files = [next(iter(sorted(root.glob(pattern)))) for pattern in patterns]
    contents = [file.read_bytes() for file in files]
    config = DatasetConfig(type=kind, data_path=str(root))

    def read():
        everything(build_source(config, 0))

    assert loads(read)

    @fuzz_settings
    @given(st.data())
    def run(data):
        k = data.draw(st.integers(0, len(files) - 1))
        files[k].write_bytes(data.draw(cases(contents[k])))
        try:
            loads(read)
        finally:
            files[k].write_bytes(contents[k])

    run()
