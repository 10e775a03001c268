"""Written videos can be played, and read frames are the right ones."""

import base64
import pickle
import struct

import av
import numpy as np
import pytest
from PIL import Image

from sam2kit.data.sources.video_decoder import open_video
from sam2kit.utils.errors import DataError
from sam2kit.viz.video_writer import gif_html, mp4_writer, save_gif, save_mp4


def ramp(count=30, size=(48, 64)):
    """Return frames whose brightness encodes their index."""
    return [np.full((*size, 3), 8 * t, dtype=np.uint8) for t in range(count)]


def write_video(path, codec, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 1_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def number(frame):
    return round(float(frame.mean()) / 8)


def test_an_mp4_has_the_written_frames_in_a_format_for_browsers(tmp_path):
    save_mp4(tmp_path / "a.mp4", (f for f in ramp(5, (45, 63))), fps=12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (64, 46, 12.5)
        assert [number(f.to_ndarray(format="rgb24")) for f in container.decode(stream)] == [
            *range(5)
        ]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable before the download ends


def test_a_failed_mp4_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="one size"), mp4_writer(tmp_path / "a.mp4", 5) as write:
        write(ramp(1)[0])
        write(ramp(1, (48, 66))[0])
    with mp4_writer(tmp_path / "b.mp4", 5):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_frames_of_a_file_in_any_order(tmp_path, name, codec):
    write_video(tmp_path / name, codec, ramp())
    source = open_video(tmp_path / name)
    assert (source.names, source.num_frames(0), source.fps) == (["a"], 30, 10)
    assert source.read_masks(0, 0) is None and not source.has_masks
    assert [number(source.read_frame(0, t)) for t in range(30)] == [*range(30)]
    order = [29, 0, 13, 14, 2, 2, 28]
    assert [number(source.read_frame(0, t)) for t in order] == order
    assert number(pickle.loads(pickle.dumps(source)).read_frame(0, 7)) == 7


def test_a_rotated_video_is_read_upright(tmp_path):
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    frame[:, :32] = 200  # bright at the left
    write_video(tmp_path / "a.mp4", "libx264", [frame])
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track, in its header
    one = 1 << 16
    content[matrix : matrix + 20] = struct.pack(">5i", 0, one, 0, -one, 0)  # clockwise, as a phone
    (tmp_path / "b.mp4").write_bytes(content)
    upright = open_video(tmp_path / "b.mp4").read_frame(0, 0)
    assert upright.shape == (64, 48, 3) and upright[:30].mean() > 190 and upright[34:].mean() < 10


def test_a_folder_of_frames_is_a_video(tmp_path):
    for t in (10, 2):
        Image.fromarray(np.full((8, 9, 3), 20 * t, np.uint8)).save(tmp_path / f"{t}.png")
    source = open_video(tmp_path)
    assert source.names == [tmp_path.name] and source.num_frames(0) == 2
    assert [source.frame_name(0, t) for t in range(2)] == ["2", "10"]
    assert source.read_frame(0, 1)[0, 0, 0] == 200


def test_files_that_are_not_videos_are_rejected(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("a.mp4", "cannot be read"),
        ("none.mp4", "none.mp4"),
        ("empty", "no fr"),
    ):
        with pytest.raises(DataError, match=message):
            open_video(tmp_path / name)


def test_a_truncated_file_is_reported(tmp_path):
    write_video(tmp_path / "a.mkv", "libx264", ramp())
    source = open_video(tmp_path / "a.mkv")
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="a.mkv: frame 29"):
        source.read_frame(0, 29)


def test_gif_html_embeds_the_file(tmp_path):
    save_gif(tmp_path / "a.gif", ramp(3))
    html = gif_html(tmp_path / "a.gif", width=480)
    head, _, content = html.rpartition("base64,")
    assert 'width="480"' in head and "data:image/gif" in head and str(tmp_path) not in html
    assert base64.b64decode(content.split('"')[0]) == (tmp_path / "a.gif").read_bytes()


def test_equal_images_give_equal_mp4_files(tmp_path):
    generator = np.random.default_rng(0)
    blocks = np.kron(generator.integers(0, 256, (4, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    images = [np.roll(blocks, 3 * t, 1) for t in range(20)]
    contents = set()
    for n in range(20):
        # Fill memory that the encoder may get: its result must not depend on the old content.
        for size in generator.integers(1, 9000, 5):
            np.full(size, n, np.uint8)
        save_mp4(tmp_path / "a.mp4", images)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1
