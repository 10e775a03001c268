"""Test that all image files are read upright, at full depth, and within limits."""

from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
from data_helpers import SIZE, make_coco, make_davis, save_json, save_palette, square
from PIL import EpsImagePlugin, Image, ImageOps

from sam2kit.data import COCODataset, VideoDataset, open_source
from sam2kit.data import pictures as pictures_module
from sam2kit.data.pictures import (
    image_size,
    is_partly_damaged,
    read_labels,
    read_picture,
)
from sam2kit.utils.errors import DataError

NOISE = np.kron(
    np.random.default_rng(0).integers(0, 255, (5, 9, 3), np.uint8), np.ones((8, 8, 1), np.uint8)
)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation, ending):
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(NOISE).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_picture(path), upright)
    assert image_size(path) == upright.shape[:2]
    np.testing.assert_array_equal(read_labels(path).pixels >> 16, upright[..., 0])


def test_frames_of_many_kinds(tmp_path):
    for name in ("a.bmp", "a.ppm", "a.webp"):
        Image.fromarray(NOISE).save(tmp_path / name, lossless=True)
        np.testing.assert_array_equal(read_picture(tmp_path / name), NOISE)
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "a.pgm")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm"), NOISE[..., [0, 0, 0]])


@pytest.mark.parametrize(
    ("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", "f4")]
)
def test_deep_frames_are_scaled_by_video(tmp_path, ending, kind):
    root = make_davis(tmp_path, {"a": 3}, ending=f".{ending}")
    for t in range(3):
        frame = np.full(SIZE, 1000 + 500 * t, kind)
        frame[:8] = np.arange(8 * SIZE[1]).reshape(8, -1)
        Image.fromarray(frame).save(root / f"JPEGImages/a/{t:05d}.{ending}")
    assert read_picture(root / f"JPEGImages/a/00001.{ending}").max() == 1500
    source = VideoDataset(root)
    values = [int(source.read_frame(0, t)[20, 20, 1]) for t in range(3)]
    # One range for all frames: about 0 to 2000.
    assert np.allclose(values, [128, 191, 255], atol=1)
    assert source.read_frame(0, 0).shape == (*SIZE, 3)
    one = open_source(root / "JPEGImages" / "a")
    np.testing.assert_array_equal(one.read_frame(0, 1), source.read_frame(0, 1))


def test_deep_frames_of_coco(tmp_path):
    content = make_coco(tmp_path)
    for row in content["images"]:
        Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(tmp_path / row["file_name"])
    source = COCODataset(save_json(tmp_path / "labels.json", content))
    assert source.read_frame(0, 0).dtype == np.uint8


def test_size_is_limited_before_anything_is_decoded(tmp_path, monkeypatch):
    for name, mode in (("a.jpg", "RGB"), ("a.png", "L"), ("a.tif", "RGB")):
        path = tmp_path / name
        Image.new(mode, (64, 48)).save(path)
        monkeypatch.setattr(pictures_module, "MAX_IMAGE_PIXELS", 64 * 48)
        read_picture(path)
        monkeypatch.setattr(pictures_module, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
        for read in (read_picture, read_labels, image_size):
            with pytest.raises(DataError) as error:
                read(path)
            assert (error.value.key, error.value.value) == ("pixels", "64 x 48")


def test_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / "a.png")
    assert error.value.key == "pixels"


def test_a_tiff_field_of_a_wrong_type_is_one_error(tmp_path):
    """Pillow raises a TypeError for positions of pixels that are stored as text."""
    path = tmp_path / "a.tif"
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    fields = [directory + 2 + 12 * n for n in range(count)]
    (offsets,) = [f for f in fields if struct.unpack_from("<H", content, f) == (273,)]
    struct.pack_into("<H", content, offsets + 2, 2)  # the type: ASCII
    path.write_bytes(content)
    for read in (read_picture, read_labels):
        with pytest.raises(DataError, match="a.tif"):
            read(path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_files_that_decode_in_part(tmp_path, options):
    path = tmp_path / "a.jpg"
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (96, 128, 3), np.uint8)
    for mode in ("L", "CMYK", "RGB"):
        Image.fromarray(noise).convert(mode).save(path, quality=95, **options)
        assert not is_partly_damaged(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = generator.bytes(100)
    path.write_bytes(content)
    assert read_picture(path).shape == noise.shape
    assert is_partly_damaged(path)


def test_values_of_label_files(tmp_path):
    ids = square(0, 0) * 1 + square(12, 12) * 300
    for name in ("a.png", "a.tif"):
        Image.fromarray(ids.astype(np.uint16)).save(tmp_path / name)
        form, pixels = read_labels(tmp_path / name)
        assert form == "deep" and np.array_equal(pixels, ids)
    Image.fromarray(ids.astype(np.float32)).save(tmp_path / "f.tif")
    assert np.array_equal(read_labels(tmp_path / "f.tif").pixels, ids)
    Image.fromarray(ids.astype(np.float32) / 2).save(tmp_path / "half.tif")
    with pytest.raises(DataError, match="half.tif"):
        read_labels(tmp_path / "half.tif")
    grey = (square(0, 0) * 7).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(tmp_path / "rgb.png")
    assert read_labels(tmp_path / "rgb.png").form == "grey"
    transparent = np.dstack([np.full((*SIZE, 3), (9, 8, 7), np.uint8), grey])
    Image.fromarray(transparent).save(tmp_path / "rgba.png")
    form, pixels = read_labels(tmp_path / "rgba.png")
    assert form == "colour" and set(np.unique(pixels)) == {0, 0x090807}
    save_palette(tmp_path / "p.png", grey)
    assert read_labels(tmp_path / "p.png").form == "palette"


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_colours_of_16_bits_are_rejected(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    cv2.imwrite(str(path), np.full((8, 9, 3), 4000, np.uint16))
    with pytest.raises(DataError) as error:
        read_picture(path)
    assert str(path) in str(error.value) and "8 bits" in error.value.hint


def test_the_size_of_a_replaced_file_is_read_again(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (4, 3)).save(path)
    assert image_size(path) == (3, 4)
    Image.new("L", (5, 3)).save(path)
    os.utime(path, ns=(1, 1))  # a clock of low resolution may give both files the same time
    assert image_size(path) == (3, 5)
    path.unlink()
    with pytest.raises(DataError):
        image_size(path)


def test_only_the_decoders_of_pictures_are_used(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for a PostScript file, whatever its name."""
    file, picture = tmp_path / "a.png", Image.new("RGB", (64, 48))
    picture.save(file, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: picture.im)
    for read in (read_picture, read_labels, image_size):
        with pytest.raises(DataError):
            read(file)


def test_huge_files_are_not_read(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    os.truncate(tmp_path / "a.jpg", 2**35)
    with pytest.raises(DataError):
        read_picture(tmp_path / "a.jpg")
