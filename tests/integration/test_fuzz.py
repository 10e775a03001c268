"""Randomly corrupted input files either load or raise an error of sam2kit.

``SAM2KIT_FUZZ_CASES=2000 pytest tests/integration/test_fuzz.py`` tries 2,000 cases for each of the
kinds of files.
"""

import copy
import json
import os
import re
import resource
from datetime import timedelta

import pytest
import torch
import yaml
from data_helpers import everything, make_coco, make_davis, save_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_helpers import make_cvat, make_label_studio, make_labelme, make_yolo

from sam2kit.config.loading import load_config, to_yaml
from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data import COCODataset, VideoDataset, build_source
from sam2kit.models.checkpoint_io import write_checkpoint
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.io import load_video_prompts
from sam2kit.utils.errors import SAM2KitError

CASES = int(os.environ.get("SAM2KIT_FUZZ_CASES", "40"))
MAX_MEMORY_GROWTH = 2**30  # bytes, for all cases of a kind together

# No example database, and derandomized: every run tries the same cases.
fuzz_settings = settings(
    max_examples=CASES,
    deadline=timedelta(seconds=20),
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
    files, memory = sorted(tmp_path.parent.iterdir()), peak_memory()
    yield
    assert sorted(tmp_path.parent.iterdir()) == files and outside.read_bytes() == b"secret"
    assert peak_memory() - memory < MAX_MEMORY_GROWTH


def peak_memory():
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loads(read, *arguments):
    """Return whether reading succeeds; errors other than sam2kit's make the test fail."""
    try:
        read(*arguments)
        return True
    except SAM2KitError as error:
        assert str(error)
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


@pytest.mark.parametrize("kind", ["cvat", "label_studio", "labelme", "yolo"])
def test_corrupted_exports_of_annotation_tools(tmp_path, kind):
    make, pattern = EXPORTS[kind]
    root = make(tmp_path / "data", "a", 2)
    (file, *_) = sorted(root.rglob(pattern))
    original = file.read_bytes()
    config = DatasetConfig(type=kind, data_path=str(root))
    assert loads(lambda: everything(build_source(config, 0)))
    cases = damaged(original)
    if file.suffix == ".json":
        cases = st.one_of(cases, changed(json.loads(original)).map(as_json))
    else:
        cases = st.one_of(cases, changed_words(original.decode()).map(str.encode))

    @fuzz_settings
    @given(cases)
    def run(text):
        file.write_bytes(text)
        loads(lambda: everything(build_source(config, 0)))

    run()


@st.composite
def changed_words(draw, text):
    """Replace one to three numbers, names or attributes of a text."""
    words = re.split(r"([\s\"=,;<>/]+)", text)
    for _ in range(draw(st.integers(1, 3))):
        words[draw(st.integers(0, len(words) - 1))] = draw(
            st.one_of(odd_words, st.text(max_size=9))
        )
    return "".join(words).encode("utf-8", "replace").decode()


odd_words = st.sampled_from(
    ["-1", "1e400", "nan", "99999999999", "0", "", '"', "<a>" * 70, "1" * 5000]
)
EXPORTS = {
    "cvat": (make_cvat, "*.xml"),
    "label_studio": (make_label_studio, "*.json"),
    "labelme": (make_labelme, "*.json"),
    "yolo": (make_yolo, "*.txt"),
}


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
