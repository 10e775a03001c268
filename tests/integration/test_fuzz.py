"""Inputs that are broken at random: each loads, or gives one of the kit's errors.

``SAM2KIT_FUZZ_CASES=2000 pytest tests/integration/test_fuzz.py`` tries 2,000 of each of the five
kinds.
"""

import copy
import json
import os
import resource
from datetime import timedelta

import pytest
import torch
import yaml
from data_helpers import everything, make_coco, make_davis, save_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam2kit.config.loading import load_config, to_yaml
from sam2kit.config.schema import Config
from sam2kit.data import COCODataset, VideoDataset
from sam2kit.models.checkpoint_io import write_checkpoint
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.io import load_video_prompts
from sam2kit.utils.errors import SAM2KitError

CASES = int(os.environ.get("SAM2KIT_FUZZ_CASES", "40"))
MOST_MEMORY = 2**30  # that all cases of a kind may add

many = settings(
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
    """A document with one to three of its values replaced, taken out or doubled."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(nodes(content))
        if not places:
            return content
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["replace", "replace", "remove", "double"])):
            case "replace":
                holder[key] = draw(values)
            case "remove":
                del holder[key]
            case _ if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
    return content


def nodes(content):
    """Every place of a document, as a container and a key."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from nodes(content[key])


@st.composite
def damaged(draw, content):
    """Bytes that are cut short, changed, or have others put in."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    other = draw(st.binary(max_size=40))
    how = draw(st.sampled_from(["cut", "change", "insert"]))
    if how == "cut":
        return content[:place]
    return content[:place] + other + content[place + (len(other) if how == "change" else 0) :]


@pytest.fixture(autouse=True)
def nothing_else_changes(tmp_path):
    """No file beside the inputs comes or goes, and memory stays."""
    outside = tmp_path.parent / f"{tmp_path.name}-secret.png"
    outside.write_bytes(b"secret")
    before, memory = sorted(tmp_path.parent.iterdir()), peak()
    yield
    assert sorted(tmp_path.parent.iterdir()) == before and outside.read_bytes() == b"secret"
    assert peak() - memory < MOST_MEMORY


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def told(read, *arguments):
    """Whether it loads; anything but the kit's own errors is a failure."""
    try:
        read(*arguments)
        return True
    except SAM2KitError as error:
        assert str(error)
        return False


def test_annotation_files(tmp_path):
    content = make_coco(tmp_path, num_frames=2)
    file = save_json(tmp_path / "a.json", content)
    assert told(lambda: everything(COCODataset(file, tmp_path)))

    @many
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        told(lambda: everything(COCODataset(file, tmp_path)))

    run()


def as_json(content):
    return json.dumps(content).encode("utf-8", "replace")


def test_masks(tmp_path):
    make_davis(tmp_path, {"a": 2})
    mask = tmp_path / "Annotations" / "a" / "00001.png"
    content = mask.read_bytes()

    @many
    @given(damaged(content))
    def run(found):
        mask.write_bytes(found)
        told(lambda: everything(VideoDataset(tmp_path)))

    run()


def test_configurations(tmp_path):
    file = tmp_path / "c.yaml"
    content = yaml.safe_load(to_yaml(Config(), comments=False))

    @many
    @given(
        st.one_of(
            changed(content).map(lambda c: yaml.safe_dump(c).encode("utf-8", "replace")),
            damaged(yaml.safe_dump(content).encode()),
        )
    )
    def run(text):
        file.write_bytes(text)
        told(load_config, file)

    run()


@pytest.mark.parametrize("line", ["_target_: os.system", "model: {_target_: os.system}"])
def test_a_configuration_names_no_class(tmp_path, line):
    (tmp_path / "c.yaml").write_text(line)
    assert not told(load_config, tmp_path / "c.yaml")


def test_a_configuration_runs_no_code(tmp_path):
    made = tmp_path / "made"
    (tmp_path / "c.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{made}']")
    assert not told(load_config, tmp_path / "c.yaml") and not made.exists()


def test_checkpoints(tmp_path):
    file = tmp_path / "c.ckpt"
    write_checkpoint({"state_dict": {"model.a": torch.zeros(3)}, "sam2kit_config": {}}, file)
    content = file.read_bytes()

    @many
    @given(damaged(content))
    def run(found):
        file.write_bytes(found)
        assert not told(load_model, file)  # it never was a whole model

    run()


def test_prompt_files(tmp_path):
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

    @many
    @given(st.one_of(changed(content).map(as_json), damaged(as_json(content))))
    def run(text):
        file.write_bytes(text)
        told(load_video_prompts, file, "v", 4, 32)

    run()
