"""Files of any content are read within limits, or raise one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam2kit.config.loading import load_config
from sam2kit.data import COCODataset
from sam2kit.data.lineage import read_tracks
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.mask_values import read_colours
from sam2kit.data.sources.training_set import read_index
from sam2kit.evaluation.compare_runs import read_metrics
from sam2kit.pipeline.status import read_status
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.prompts.io import load_video_prompts
from sam2kit.tracking.results import read_records
from sam2kit.utils import readers
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError, SAM2KitError
from sam2kit.utils.readers import read_json, read_text, read_xml, read_yaml


def write(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_is_read(tmp_path):
    content = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    assert read_json(write(tmp_path, json.dumps(content))) == content
    assert read_json(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(content).encode())) == content
    scores = read_json(write(tmp_path, '{"J&F": NaN}'), non_finite=True)
    assert scores["J&F"] != scores["J&F"]
    deep = "[" * readers.MAX_DEPTH + "]" * readers.MAX_DEPTH
    assert read_json(write(tmp_path, deep))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a JSON file"),
        ("{", "line 1 column 2"),
        ("[1,\n2,]", "line 2"),
        ("\xff".encode("latin-1"), "not a JSON file"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[" * 100_000, "64 levels"),
        ('{"a":' * 100_000, "64 levels"),
        ("[" * 66 + "]" * 66, "64 levels"),
        ("9" * 5000, "not a JSON file"),
    ],
)
def test_invalid_json(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_json(path, error=CheckpointError, hint="the fix")
    assert str(path) in str(error.value) and error.value.hint == "the fix"
    assert len(str(error.value)) < 1000


def test_files_that_are_too_large_or_not_files(tmp_path, monkeypatch):
    path = write(tmp_path, "[1, 2, 3]")
    os.mkfifo(tmp_path / "pipe")  # opening it would block indefinitely
    monkeypatch.setattr(readers, "MAX_XML_BYTES", 8)
    for read in (read_json, read_text, read_xml):
        limit = {} if read is read_xml else {"max_bytes": 8}
        with pytest.raises(DataError, match=r"maximum") as error:
            read(path, **limit)
        assert error.value.hint and str(path) in str(error.value)
        with pytest.raises(DataError, match="not a regular file"):
            read(tmp_path)
        with pytest.raises(DataError, match="not a regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")
    big = write(tmp_path, "a: 1\n" * (readers.MAX_YAML_BYTES // 5 + 1))
    with pytest.raises(ConfigError, match="maximum"):
        read_yaml(big)
    with pytest.raises(DataError, match="not a regular file"):
        COCODataset(tmp_path / "pipe", tmp_path)


def test_yaml_is_read(tmp_path):
    path = write(tmp_path, "a: &x {b: 1e-4}\nc: *x\nd: ${a.b}\n")
    assert read_yaml(path) == {"a": {"b": 1e-4}, "c": {"b": 1e-4}, "d": "${a.b}"}
    assert read_yaml(write(tmp_path, "# nothing\n")) == {}
    data = write(tmp_path, "names: [cat]\ndownload: |\n  echo ${\n")
    assert read_yaml(data, interpolations=False)["download"] == "echo ${\n"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "single value"),
        ("null: 1", "NoneType"),
        ("a: &a {b: *a}", "'a' contains itself"),
        ("output_dir: '${'", "output_dir"),
        (BOMB, "20000 values"),
        ("[" * 1000, "64 levels"),
        ("a: *b", "undefined alias"),
        ("a: 1\n b: 2", "line 2"),
        ("!!python/object/apply:os.getcwd []", "constructor"),
        ("\xff".encode("latin-1"), "not a YAML file"),
        ("a: " + "1" * 5000, "invalid value"),
    ],
)
def test_invalid_yaml(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value) and error.value.hint and len(str(error.value)) < 1000
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("content", ["defaults: 3", "defaults: [3]", "defaults: [[a]]"])
def test_invalid_defaults_lists(tmp_path, content):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, content))
    assert error.value.key == "defaults" and error.value.hint


def test_files_of_a_defaults_list_are_checked(tmp_path):
    write(tmp_path, BOMB, "other.yaml")
    with pytest.raises(ConfigError, match=r"other.yaml.* 20000 values"):
        load_config(write(tmp_path, "defaults: [other]", "main.yaml"))
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", "a: &a [*a]", "own.yaml")
    with pytest.raises(ConfigError, match=r"own.yaml.*contains itself"):
        load_config(write(tmp_path, "defaults: [{model: own}]", "main.yaml"))
    with pytest.raises(ConfigError, match=r"own.yaml.*contains itself"):
        load_config(write(tmp_path, "defaults: [{model: tiny}]", "main.yaml"), ["model=own"])
    with pytest.raises(ConfigError, match="includes itself") as error:
        load_config(write(tmp_path, "defaults: [main]", "main.yaml"))
    assert error.value.key == "defaults"


def test_huge_numbers_of_generated_videos_are_rejected():
    for key in ("dataset.synthetic_videos", "valdataset.synthetic_videos"):
        with pytest.raises(ConfigError) as error:
            load_config(overrides=["dataset.type=synthetic", f"{key}=1000000000000"])
        (problem,) = error.value.problems
        assert (problem.key, problem.value) == (key, 10**12)


def test_xml_is_read(tmp_path):
    text = '<?xml version="1.0" encoding="utf-8"?>\n<a b="1"><c>ü &amp; v</c></a>'
    root = read_xml(write(tmp_path, text))
    assert root.tag == "a" and root.get("b") == "1" and root.findtext("c") == "ü & v"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not an XML file"),
        ("<a>", "not an XML file"),
        ("<a/><b/>", "line 1"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "document type definition"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type definition"),
        ("<a>" * 100, "64 levels"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "not an XML file"),
        ("<a>\xff</a>".encode("latin-1"), "not an XML file"),
    ],
)
def test_invalid_xml(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        read_xml(path, hint="the fix")
    assert str(path) in str(error.value) and error.value.hint


def test_the_number_of_xml_elements_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_XML_NODES", 10)
    with pytest.raises(DataError, match="10 elements"):
        read_xml(write(tmp_path, f"<a>{'<b/>' * 10}</a>"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=20,
)
SECTION = st.sampled_from(["defaults", "dataset", "model", "seed", "output_dir", "${", "a", ""])


@settings(
    max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.dictionaries(SECTION, values, max_size=3) | values, junk=st.binary(max_size=6))
def test_any_file_loads_or_raises_one_error(tmp_path, content, junk):
    """Values of any structure as JSON and YAML (JSON is YAML), whole and with damaged bytes."""
    text = json.dumps(content).encode()
    cut = len(junk) * len(text) // 7
    for data in (text, text[:cut] + junk + text[cut:], text[:cut]):
        path = write(tmp_path, data)
        for read in (read_json, read_yaml, read_xml, load_config):
            try:
                read(path)
            except SAM2KitError as error:
                assert error.hint or getattr(error, "problems", ())
                assert len(str(error)) < 2000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("track.json", read_records),
        ("training_set.json", read_index),
        ("status.json", read_status),
        ("metrics.json", read_metrics),
        ("colours.json", lambda folder: read_colours(str(folder / "colours.json"))),
        ("labelmap.txt", lambda folder: read_colours(str(folder / "labelmap.txt"))),
        ("a.txt", lambda folder: read_tracks(folder / "a.txt")),
        ("split.txt", lambda folder: read_split(str(folder / "split.txt"), folder, ["a"])),
        (f"a-{'0' * 16}.json", lambda folder: AnnotationStore(folder).videos()),
        ("objects.json", lambda folder: read_object_names(folder / "objects.json")),
        ("prompts.json", lambda folder: load_video_prompts(folder / "prompts.json", "a", 3, 32)),
    ],
)
@pytest.mark.parametrize("kind", ["huge", "nested"])
def test_every_reader_limits_size_and_nesting(tmp_path, name, read, kind):
    file = write(tmp_path, "[" * 100_000, name)
    if kind == "huge":
        os.truncate(file, 2**36)  # a file with a hole
    with pytest.raises(SAM2KitError) as error:
        read(tmp_path)
    assert error.value.hint and len(str(error.value)) < 1000
