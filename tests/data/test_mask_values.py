"""Test that the meaning of mask values is decided once per dataset."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SIZE, make_davis, save_palette, square, training_videos
from PIL import Image

from sam2kit.config.schema import DatasetConfig
from sam2kit.data import VideoDataset
from sam2kit.data.sources.mask_values import (
    MaskDecision,
    davis_palette,
    decide,
    read_colours,
    values_in,
)
from sam2kit.utils.errors import DataError

ONE, TWO, VOID = square(0, 0), square(12, 4), square(12, 20)


def masks(root: Path, *pictures: np.ndarray | Image.Image, ending: str = ".png") -> Path:
    """Write a video with one mask per image."""
    make_davis(root, {"a": len(pictures)}, annotated=lambda t: False)
    for t, picture in enumerate(pictures):
        path = root / f"Annotations/a/{t:05d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(path)
    return root


def grey(one: int = 0, two: int = 0, void: int = 0, kind: type = np.uint8) -> np.ndarray:
    return (ONE * one + TWO * two + VOID * void).astype(kind)


def ids_on(source: VideoDataset, t: int) -> dict[int | str, int]:
    """Return the areas of the objects on a frame."""
    return {o: int(m.sum()) for o, m in (source.read_masks(0, t) or {}).items()}


def test_void_stays_void_on_frames_without_objects(tmp_path):
    source = VideoDataset(masks(tmp_path, grey(void=255), grey(1, 2, 255), grey(void=255)))
    assert ids_on(source, 0) == {} and ids_on(source, 1) == {1: 64, 2: 64}
    for t in range(3):
        np.testing.assert_array_equal(source.read_void(0, t), VOID)
    assert [r.kind for r in source.remarks] == ["note"]


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_one_object_of_0_and_255(tmp_path, mode):
    picture = Image.fromarray(grey(255)).convert(mode)
    source = VideoDataset(masks(tmp_path, grey(), picture))
    assert ids_on(source, 1) == {1: 64}
    assert source.read_void(0, 1) is None or not source.read_void(0, 1).any()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (grey(71, 72), {71: 64, 72: 64}),
        (grey(128), {128: 64}),
        (grey(10, 20, 255), {10: 64, 20: 64}),
        (grey(85, 170, 255), {85: 64, 170: 64, 255: 64}),
        (grey(301, 70000, kind=np.int32), {301: 64, 70000: 64}),
        (grey(1, 255, kind=np.uint16), {1: 64, 255: 64}),
        (grey(65535, kind=np.uint16), {1: 64}),
    ],
)
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_values_that_tools_write(tmp_path, picture, expected, ending):
    if picture.max() > 65535 and ending == ".png":
        pytest.skip("PNG has up to 16 bits")
    assert ids_on(VideoDataset(masks(tmp_path, picture, ending=ending)), 0) == expected


def test_shades_are_rejected_and_can_be_read_by_a_threshold(tmp_path):
    soft = grey(255)
    soft[8, :8], soft[9, :8] = 170, 85  # a smoothed edge
    root = masks(tmp_path, soft)
    with pytest.raises(DataError) as error:
        VideoDataset(root).read_masks(0, 0)
    assert error.value.key == "dataset.mask_values"
    assert ids_on(VideoDataset(root, mask_values="threshold"), 0) == {1: 72}
    assert ids_on(VideoDataset(root, mask_values="binary"), 0) == {1: 80}
    assert ids_on(VideoDataset(root, mask_values="all_ids"), 0) == {85: 8, 170: 8, 255: 64}


def test_jpeg_masks_are_read_by_a_threshold_only(tmp_path):
    root = masks(tmp_path, Image.fromarray(grey(255)), ending=".jpg")
    with pytest.raises(DataError, match="JPEG") as error:
        VideoDataset(root)
    assert error.value.key == "dataset.mask_values"
    assert 56 <= ids_on(VideoDataset(root, mask_values="threshold"), 0)[1] <= 72


def coloured(*colours: tuple[int, int, int]) -> np.ndarray:
    picture = np.zeros((*SIZE, 3), np.uint8)
    for mask, colour in zip((ONE, TWO, VOID), colours, strict=False):
        picture[mask] = colour
    return picture


def test_each_colour_is_an_object(tmp_path):
    root = masks(tmp_path, coloured((250, 50, 83)), coloured((0, 0, 1), (250, 50, 83)))
    source = VideoDataset(root)
    assert ids_on(source, 0) == {"#fa3253": 64}
    assert ids_on(source, 1) == {"#000001": 64, "#fa3253": 64}
    palette = [tuple(c) for c in davis_palette()[[3, 20, 255]].tolist()]
    source = VideoDataset(masks(tmp_path / "voc", coloured(*palette)))
    assert ids_on(source, 0) == {3: 64, 20: 64}
    np.testing.assert_array_equal(source.read_void(0, 0), VOID)


@pytest.mark.parametrize("form", ["json", "txt"])
def test_colour_tables(tmp_path, form):
    root = masks(tmp_path / "d", coloured((250, 50, 83), (0, 0, 142)))
    table = tmp_path / f"labelmap.{form}"
    if form == "json":
        table.write_text(json.dumps({"cell": [250, 50, 83], "background": [0, 0, 142]}))
    else:
        table.write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,142::\ncell:250,50,83::\n"
        )
    config = DatasetConfig(type="video", data_path=str(root), mask_colours=str(table))
    assert ids_on(training_videos(config, 0), 0) == {"cell": 64}
    table.write_text(json.dumps({"cell": [1, 2, 3]}) if form == "json" else "cell:1,2,3::")
    with pytest.raises(DataError) as error:
        training_videos(config, 0).read_masks(0, 0)
    assert error.value.key == "dataset.mask_colours"
    table.write_text("{" if form == "json" else "cell")
    with pytest.raises(DataError) as error:
        training_videos(config, 0)
    assert error.value.key == "dataset.mask_colours"


def test_built_in_colour_tables():
    assert read_colours("cityscapes")[0x00008E] == "car"
    assert read_colours("voc")[0x800000] == 1


def test_photos_as_masks_are_rejected(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    with pytest.raises(DataError) as error:
        VideoDataset(masks(tmp_path, noise)).read_masks(0, 0)
    assert error.value.key == "dataset.mask_values"


def test_masks_that_contradict_the_sample_are_errors(tmp_path):
    root = masks(tmp_path, grey(255), grey(1, 0, 255))
    decision = decide([root / "Annotations/a/00000.png"])
    assert decision.kind == "binary"
    with pytest.raises(DataError, match="00001.png") as error:
        decision.read(root / "Annotations/a/00001.png")
    assert error.value.key == "dataset.mask_values"


def test_decision_is_kept_in_copies_and_bounded(tmp_path):
    source = VideoDataset(masks(tmp_path, *[grey(255)] * 3))
    source.read_masks(0, 0)
    copy = pickle.loads(pickle.dumps(source))
    (tmp_path / "Annotations/a/00001.png").write_bytes(b"")  # read again, this would matter
    assert ids_on(copy, 2) == {1: 64}
    save_palette(tmp_path / "p.png", grey(1))
    paths = [tmp_path / "p.png"] + [tmp_path / "missing.png"] * 10_000
    assert MaskDecision(paths).values.kind == "ids"


@pytest.mark.parametrize("shape", [(0, 5), (4, 5)])
@pytest.mark.parametrize("values", [[], [0], [7], [0, 7, 255]])
def test_values_of_masks(shape, values):
    pixels = np.zeros(shape, np.uint8)
    if values and pixels.size:
        pixels[:] = values[-1]
        pixels[0, : len(values)] = values
    assert values_in(pixels) == np.unique(pixels).tolist()
    assert values_in(pixels.astype(np.int32)) == np.unique(pixels).tolist()
