"""Test the axes, channels, labels and layouts of TIFF stacks, and the files that are rejected."""

from __future__ import annotations

import logging
import lzma
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from data_helpers import SIZE, save_frame, square
from PIL import Image
from stack_helpers import NUM_FRAMES, labels, make_frames, make_stacks, save_tiff, stack

from sam2kit.data import open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.intensity import IntensityRule
from sam2kit.data.sources import stacks
from sam2kit.data.sources.tiff import StackOptions, TiffDataset, TiffStack
from sam2kit.utils.errors import DataError

H, W = SIZE
RULE = IntensityRule(window=(0, 255))


def values(*shape: int) -> np.ndarray:
    """Make images in which the value of a pixel tells its first axes: 100 a + 10 b + c."""
    digits = np.indices(shape)
    total = sum(10 ** (len(shape) - 1 - k) * digit for k, digit in enumerate(digits))
    return (total[..., None, None] + np.zeros((H, W))).astype(np.uint16)


# --- axes ---------------------------------------------------------------------------------------

READ = {
    "TYX": (values(5), {}, 5, lambda t: t),
    "TCYX": (values(5, 3), {}, 5, lambda t: [10 * t, 10 * t + 1, 10 * t + 2]),
    "CTYX": (values(3, 5), {}, 5, lambda t: [t, 10 + t, 20 + t]),
    "TZYX": (values(4, 6), {"z": "max"}, 4, lambda t: 10 * t + 5),
    "ZTYX": (values(6, 4), {"z": "2"}, 4, lambda t: 20 + t),
    "TZCYX": (
        values(4, 5, 2),
        {"z": "mean", "channels": (1,)},
        4,
        lambda t: 100 * t + 21,
    ),
    "ZYX": (values(5), {}, 5, lambda t: t),
    "YX": (values(1)[0], {}, 1, lambda t: 0),
    "CYX": (values(2), {}, 1, lambda t: [0, 1]),
}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("axes", READ)
def test_axes_of_the_metadata(axes, compression, tmp_path):
    pixels, options, num_frames, expected = READ[axes]
    path = save_tiff(tmp_path / "a.tif", pixels, axes=axes, compression=compression)
    read = TiffStack(path, StackOptions(**options))
    assert (read.num_frames, read.size) == (num_frames, SIZE)
    for t in reversed(range(num_frames)):
        frame = read.read(t)
        assert frame.dtype == np.uint16
        assert np.array_equal(frame[0, 0], expected(t)) and (frame == frame[0, 0]).all()


def test_imagej_and_ome(tmp_path):
    pixels = values(4, 2)
    tifffile.imwrite(tmp_path / "j.tif", pixels, imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite(tmp_path / "o.ome.tif", pixels, ome=True, metadata={"axes": "TCYX"})
    for name in ("j.tif", "o.ome.tif"):
        read = TiffStack(tmp_path / name)
        assert read.num_frames == 4 and read.read(3)[0, 0].tolist() == [30, 31]


def test_pages_without_metadata_are_frames(tmp_path, messages):
    path = save_tiff(tmp_path / "a.tif", values(20), metadata=None)
    read = TiffStack(path)
    assert read.num_frames == 20 and (read.read(7) == 7).all()
    assert any("20 pages without metadata" in line for line in messages)


@pytest.mark.parametrize("shape", [(2,), (3,), (4,), (5, 3)])
def test_axes_that_are_not_clear(shape, tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            values(*shape), photometric="minisblack", metadata={"axes": "QQQ"[: len(shape)] + "YX"}
        )
    with pytest.raises(DataError) as error:
        TiffStack(path)
    assert error.value.key == "dataset.stack_axes" and error.value.hint
    axes = "TYX" if len(shape) == 1 else "TCYX"
    assert TiffStack(path, StackOptions(axes=axes)).num_frames == shape[0]
    if len(shape) == 1:
        assert TiffStack(path, StackOptions(axes="cyx", channels=(1,))).read(0)[0, 0] == 1


@pytest.mark.parametrize("axes", ["TY", "TTX", "TXQ", "TCZYX", "TCX"])
def test_wrong_axes(axes, tmp_path):
    path = save_tiff(tmp_path / "a.tif", values(5), axes="TYX")
    with pytest.raises(DataError) as error:
        TiffStack(path, StackOptions(axes=axes))
    assert (error.value.key, error.value.value) == ("dataset.stack_axes", axes)


def test_slices_of_frames_need_a_rule(tmp_path):
    path = save_tiff(tmp_path / "a.tif", values(4, 6), axes="TZYX")
    for z in (None, "6"):
        with pytest.raises(DataError) as error:
            TiffStack(path, StackOptions(z=z))
        assert (error.value.key, error.value.value) == ("dataset.stack_z", z)


def test_channels(tmp_path):
    path = save_tiff(tmp_path / "a.tif", values(5, 4), axes="TCYX")
    for channels in (None, (0, 4)):
        with pytest.raises(DataError) as error:
            TiffStack(path, StackOptions(channels=channels))
        assert error.value.key == "dataset.stack_channels"
    options = StackOptions(channels=(3, 1))
    assert TiffDataset(path, rule=RULE, options=options).read_frame(0, 2)[0, 0].tolist() == [
        23,
        21,
        0,
    ]
    options = StackOptions(channels=(3,))
    assert TiffDataset(path, rule=RULE, options=options).read_frame(0, 2)[0, 0].tolist() == [23] * 3


def test_colours(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, H, W, 3)).astype(np.uint8)
    save_tiff(tmp_path / "a.tif", colours, photometric="rgb", axes="TYXS")
    source = open_source(tmp_path)
    assert all(np.array_equal(source.read_frame(0, t), colours[t]) for t in range(6))


def test_values_of_many_types(tmp_path):
    for kind in ("uint8", "int16", "uint32", "float32", "float64"):
        path = save_tiff(tmp_path / f"{kind}.tif", stack(dtype="uint8").astype(kind), axes="TYX")
        source = TiffDataset(path, rule=IntensityRule(window=(0, 255)))
        assert (source.read_frame(0, 2) == 200).all(), kind


def test_lzw(tmp_path):
    """Pillow reads what tifffile cannot without further packages."""
    pages = [Image.fromarray(frame) for frame in values(5)]
    pages[0].save(
        tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw"
    )
    read = TiffStack(tmp_path / "a.tif")
    assert [read.read(t)[0, 0] for t in range(5)] == list(range(5))


# --- labels and layouts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "{}_labels.tif",
        "{}_masks.TIF",
        "{}_cp_masks.tif",
        "labels/{}.tif",
        "masks/{}_masks.tif",
    ],
)
def test_names_of_labels(pattern, tmp_path):
    for name in ("x1", "x2"):
        save_tiff(tmp_path / f"{name}.tif", stack(), axes="TYX")
        save_tiff(tmp_path / pattern.format(name), labels(), axes="TYX")
    source = open_source(tmp_path)
    assert source.names == ["x1", "x2"] and source.has_masks
    assert np.array_equal(source.read_masks(1, 2)[1], square(0, 4))
    one = open_source(tmp_path / "x2.tif")
    assert one.names == ["x2"] and np.array_equal(one.read_masks(0, 2)[1], square(0, 4))


def test_images_beside_labels(tmp_path):
    save_tiff(tmp_path / "images" / "a.tif", stack(), axes="TYX")
    save_tiff(tmp_path / "labels" / "a.tif", labels(), axes="TYX")
    assert open_source(tmp_path).has_masks


def test_labels_elsewhere(tmp_path):
    make_stacks(tmp_path / "data")
    for name in "ab":
        path = tmp_path / "data" / f"{name}_labels.tif"
        (tmp_path / "other").mkdir(exist_ok=True)
        path.rename(tmp_path / "other" / f"{name}.tif")
    assert not open_source(tmp_path / "data").has_masks
    source = TiffDataset(tmp_path / "data", masks_path=tmp_path / "other")
    assert set(source.read_masks(0, 0)) == {1, 2}
    with pytest.raises(DataError) as error:
        TiffDataset(tmp_path / "data", masks_path=tmp_path / "other" / "a.tif")
    assert error.value.key == "dataset.masks_path"
    one = TiffDataset(tmp_path / "data" / "a.tif", masks_path=tmp_path / "other" / "a.tif")
    assert one.has_masks


def test_one_folder_of_frames(tmp_path):
    root = make_frames(tmp_path, names=("a",)) / "a"
    source = open_source(root)
    assert (source.names, source.num_frames(0)) == (["a"], NUM_FRAMES)
    assert [source.read_masks(0, t) is None for t in range(4)] == [False, True, False, True]
    assert list(source.annotated_frames(0)) == [0, 2, 4]


def test_labels_beside_their_frames(tmp_path):
    for t, (frame, mask) in enumerate(zip(stack(), labels(), strict=True)):
        save_tiff(tmp_path / "a" / f"t{t}.tif", frame)
        save_tiff(tmp_path / "a" / f"t{t}_masks.tif", mask)
    source = open_source(tmp_path / "a")
    assert source.num_frames(0) == NUM_FRAMES and set(source.read_masks(0, 3)) == {1, 2}


def test_labels_by_the_number_of_their_frame(tmp_path):
    for t, (frame, mask) in enumerate(zip(stack(), labels(), strict=True)):
        save_tiff(tmp_path / "a" / f"t{t:03d}.tif", frame)
        save_tiff(tmp_path / "a" / "labels" / f"seg_{t}.tif", mask)
    assert np.array_equal(open_source(tmp_path).read_masks(0, 3)[1], square(0, 6))


def test_large_ids(tmp_path):
    save_tiff(tmp_path / "a.tif", stack(), axes="TYX")
    ids = np.where(labels() > 0, labels().astype(np.uint32) * 1_500_000, 0).astype(np.uint32)
    save_tiff(tmp_path / "a_labels.tif", ids, axes="TYX")
    assert set(open_source(tmp_path).read_masks(0, 0)) == {1_500_000, 3_000_000}


def test_three_label_images_are_as_clear_as_their_frames(tmp_path):
    save_tiff(tmp_path / "a.tif", stack(3), axes="TYX")
    save_tiff(tmp_path / "a_labels.tif", labels(3), metadata=None)
    assert set(open_source(tmp_path).read_masks(0, 2)) == {1, 2}


def test_eight_bit_frames_without_labels_stay_a_video_of_frames(tmp_path):
    for t in range(3):
        save_frame(tmp_path / "a" / f"{t}.tif", 10 * t)
    assert detect_layout(tmp_path).type == "video"
    assert detect_layout(make_stacks(tmp_path / "b")).type == "tiff"


# --- rejected files -----------------------------------------------------------------------------


def rejects(root, *keys) -> None:
    with pytest.raises(DataError) as error:
        source = open_source(root)
        for t in range(source.num_frames(0)):
            source.read_frame(0, t)
            source.read_masks(0, t)
    assert error.value.hint
    if keys:
        assert error.value.key in keys


def test_labels_of_another_length_or_size(tmp_path):
    save_tiff(tmp_path / "a" / "a.tif", stack(), axes="TYX")
    save_tiff(tmp_path / "a" / "a_labels.tif", labels(5), axes="TYX")
    rejects(tmp_path / "a")
    save_tiff(tmp_path / "b" / "a.tif", stack(), axes="TYX")
    save_tiff(tmp_path / "b" / "a_labels.tif", labels()[:, 1:], axes="TYX")
    rejects(tmp_path / "b")


def test_labels_that_are_no_integers(tmp_path):
    make_stacks(tmp_path, names=("a",))
    for wrong in (labels() * 0.5, -labels().astype(np.int16), labels() * np.nan):
        save_tiff(tmp_path / "a_labels.tif", wrong, axes="TYX")
        rejects(tmp_path)


def test_two_candidates_for_labels(tmp_path):
    make_stacks(tmp_path, names=("a",))
    save_tiff(tmp_path / "a_masks.tif", labels(), axes="TYX")
    rejects(tmp_path)


def test_a_label_of_no_frame(tmp_path):
    make_frames(tmp_path, names=("a",))
    save_tiff(tmp_path / "a" / "masks" / "img_77_cp_masks.tif", labels()[0])
    rejects(tmp_path)


def test_a_stack_among_frames(tmp_path):
    make_frames(tmp_path, names=("a",))
    save_tiff(tmp_path / "a" / "img_9.tif", stack(), axes="TYX")
    rejects(tmp_path)


def test_damaged_files(tmp_path):
    path = make_stacks(tmp_path / "a", names=("a",), compression="zlib") / "a.tif"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    rejects(tmp_path / "a")
    path.write_bytes(content[:8] + bytes(len(content) - 8))
    rejects(tmp_path / "a")
    path.write_bytes(b"")
    rejects(tmp_path / "a")
    path = make_stacks(tmp_path / "b", names=("a",)) / "a.tif"
    path.write_bytes(path.read_bytes()[:-2000])
    rejects(tmp_path / "b")


def test_what_the_reader_logs_gets_the_name_of_the_file(tmp_path, messages, capfd):
    """tifffile prints to standard error by itself, without the path."""
    logging.getLogger("tifffile").handlers.clear()
    path = make_stacks(tmp_path, names=("a",)) / "a.tif"
    path.write_bytes(path.read_bytes()[:-1000])
    with suppress(DataError):
        TiffStack(path).read(0)
    with tifffile.TiffFile(path):
        logging.getLogger("tifffile").warning("<tifffile.TiffFile 'a.tif'> a page is missing")
    assert "tifffile" not in capfd.readouterr().err
    whole = make_stacks(tmp_path / "b", names=("a",)) / "a.tif"
    with pytest.MonkeyPatch.context() as patch:
        read = tifffile.TiffFile.__init__

        def complain(self, *arguments, **keys):
            read(self, *arguments, **keys)
            logging.getLogger("tifffile").warning("<tifffile.TiffFile 'a.tif'> a page is missing")

        patch.setattr(tifffile.TiffFile, "__init__", complain)
        assert TiffStack(whole).num_frames == NUM_FRAMES
    assert sum(f"{whole}: the TIFF reader reports: a page is missing" in m for m in messages) == 1


def test_a_forged_size_is_rejected_before_memory_is_used(tmp_path):
    """A header that promises 65535 x 65535 pixels of 8 bytes must not allocate 32 GiB."""
    path = save_tiff(tmp_path / "a.tif", stack(1)[0].astype(np.float64))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            entry = file.pages.first.tags[tag]
            size = {3: "<H", 4: "<I"}[int(entry.dtype)]
            struct.pack_into(size, content, entry.valueoffset, 65_535)
    path.write_bytes(content)
    rejects(tmp_path)


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_compressed_pixels_expand_to_the_size_of_a_frame_only(tmp_path, compression):
    """A file of a megabyte could need a gigabyte of memory."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((5, H, W), np.uint8), compression=compression)
    bomb = {"zlib": zlib, "lzma": lzma}[compression].compress(bytes(1 << 25))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        for tag, value in (("StripOffsets", len(content)), ("StripByteCounts", len(bomb))):
            assert page.tags[tag].count == 1 and page.tags[tag].dtype == 4
            struct.pack_into("<I", content, page.tags[tag].valueoffset, value)
    path.write_bytes(content + bomb)
    frames = TiffStack(path)
    assert frames.read(1).all()
    tracemalloc.start()
    try:
        assert not frames.read(0).any()
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    path.write_bytes(content + bomb[:3])
    with pytest.raises(DataError):
        TiffStack(path).read(0)


def test_the_limit_of_a_frame(tmp_path, monkeypatch):
    from sam2kit.data.sources import tiff

    make_stacks(tmp_path, names=("a",))
    monkeypatch.setattr(tiff, "MAX_FRAME_BYTES", H * W * 2 - 1)
    rejects(tmp_path)
    assert stacks.MAX_FRAME_BYTES > 1 << 20


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}])
def test_files_of_a_stack_are_in_its_folder(tmp_path, options):
    """OME's metadata name further files, which must not lead to other files of the user."""
    frames = stack(2) + np.array([1, 2], np.uint16)[:, None, None]

    def save(name: str, second: str, pixels: np.ndarray) -> Path:
        planes = "".join(
            f'<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="{file}">urn:uuid:{t}'
            "</UUID></TiffData>"
            for t, file in enumerate(("p0.tif", second))
        )
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{int(name != "p0.tif")}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYCZT" Type="uint16" SizeX="{W}" SizeY="{H}" SizeC="1" SizeZ="1" '
            f'SizeT="2">{planes}</Pixels></Image></OME>'
        )
        path = tmp_path / "data" / name
        if options:  # tifffile alone cannot write it
            return save_lzw(path, pixels, xml)
        return save_tiff(path, pixels, description=xml, metadata=None)

    path = save("p0.tif", "p1.tif", frames[0])
    save("p1.tif", "p1.tif", frames[1])
    assert [int(TiffStack(path).read(t)[0, 0]) for t in range(2)] == [1, 102]
    (tmp_path / "private").mkdir()
    (tmp_path / "data" / "p1.tif").rename(tmp_path / "private" / "p1.tif")
    for name in ("../private/p1.tif", str(tmp_path / "private" / "p1.tif")):
        path = save("p0.tif", name, frames[0])
        with pytest.raises(DataError) as caught:
            TiffStack(path)
        assert caught.value.key == "FileName" and caught.value.value.endswith("private/p1.tif")
        assert str(path) in str(caught.value)


def save_lzw(path: Path, pixels: np.ndarray, xml: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, compression="tiff_lzw", description=xml)
    return path
