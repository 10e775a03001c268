"""Fingerprints: a changed or exchanged frame or mask changes them, moving the data does not."""

from __future__ import annotations

import os
import shutil

import pytest
from data_helpers import make_davis, save_frame, save_palette

from sam2kit.config.schema import Config
from sam2kit.data import fingerprint
from sam2kit.data.build import build_datasets
from sam2kit.data.fingerprint import (
    GENERATED,
    FrameHasher,
    content,
    file_stamps,
    sampled_content,
)
from sam2kit.data.sources.base import FrameRange
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.mixture import MixtureDataset
from sam2kit.data.splits import describe
from sam2kit.data.synthetic.dataset import CompositedDataset, SyntheticDataset


def exchange(first, second):
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)


@pytest.fixture
def root(tmp_path):
    root = make_davis(tmp_path / "data")
    for t in range(6):  # same sizes, so that only the content differs
        save_frame(root / "JPEGImages" / "a" / f"{t:05d}.jpg", 10 * t)
    return root


CHANGES = {
    "frames exchanged": lambda root: exchange(
        root / "JPEGImages" / "a" / "00001.jpg", root / "JPEGImages" / "a" / "00002.jpg"
    ),
    "masks exchanged": lambda root: exchange(
        root / "Annotations" / "a" / "00001.png", root / "Annotations" / "a" / "00002.png"
    ),
    "frame replaced": lambda root: save_frame(root / "JPEGImages" / "a" / "00003.jpg", 99),
    "mask emptied": lambda root: save_palette(
        root / "Annotations" / "a" / "00003.png", VideoDataset(root).read_masks(0, 0)[1] * 0
    ),
    "mask deleted": lambda root: (root / "Annotations" / "a" / "00003.png").unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_detected(root, name):
    def prints():
        source = VideoDataset(root)
        return file_stamps(source, 0), content(source, 0), sampled_content(source)

    before = prints()
    assert prints() == before
    other = content(VideoDataset(root), 1)
    CHANGES[name](root)
    assert all(one != two for one, two in zip(prints(), before, strict=True))
    assert content(VideoDataset(root), 1) == other


def test_moved_and_touched_data_have_the_same_content(root, tmp_path):
    source = VideoDataset(root)
    before = content(source, 0), sampled_content(source)
    stamps = file_stamps(source, 0)
    shutil.copytree(root, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "JPEGImages" / "a" / "00000.jpg", (1, 1))
    copy = VideoDataset(tmp_path / "copy")
    assert (content(copy, 0), sampled_content(copy)) == before
    assert file_stamps(copy, 0) != stamps


def test_generated_videos_are_not_read(monkeypatch):
    config = Config()
    config.dataset.type = "synthetic"
    source = build_datasets(config)[0].source
    monkeypatch.setattr(type(source), "read_frame", None)
    assert sampled_content(source) == GENERATED


@pytest.mark.parametrize("kind", ["generated first", "generated last", "composited"])
def test_changes_beside_generated_videos_are_detected(root, monkeypatch, kind):
    monkeypatch.setattr(SyntheticDataset, "read_frame", None)  # these are not read
    monkeypatch.setattr(CompositedDataset, "read_masks", None)
    generated = SyntheticDataset(120, 2, 32)

    def source():
        if kind == "composited":
            return CompositedDataset(VideoDataset(root))
        sources = [VideoDataset(root), generated]
        return MixtureDataset(sources[::-1] if kind == "generated first" else sources, [1, 1])

    before = sampled_content(source())
    assert sampled_content(source()) == before != GENERATED
    CHANGES["frame replaced"](root)
    assert sampled_content(source()) != before


@pytest.mark.parametrize(("limit", "decoded", "more"), [(256, 40, 40 - 2 * 7), (10, 10, 2)])
def test_identifying_videos_and_their_digest_share_decoded_frames(
    tmp_path, monkeypatch, limit, decoded, more
):
    monkeypatch.setattr(fingerprint, "SAMPLED_FRAMES", limit)
    source = VideoDataset(make_davis(tmp_path / "data", {"a": 20, "b": 20}))
    read, calls = VideoDataset.read_frame, []
    monkeypatch.setattr(
        VideoDataset, "read_frame", lambda *args: calls.append(args[1:]) or read(*args)
    )
    hasher = FrameHasher()
    for video in (source, FrameRange(source, 0, 15), FrameRange(source, 16, 20)):
        videos = describe(video, hasher)
        assert videos == describe(video)
    calls.clear()
    digest = sampled_content(source, hasher)
    # Of 8 indices, 6 are below 20. The last frame identifies a video, but is not in each digest.
    assert len(calls) == more
    calls.clear()
    assert sampled_content(source) == digest and len(calls) == len(set(calls)) == decoded


def test_sampled_frames_of_a_cut_of_several_videos(tmp_path, monkeypatch):
    """Identifying frames come first, then others; runs store the digest of these frames."""
    root = make_davis(tmp_path / "data", {"a": 20, "b": 9, "c": 14})
    source = FrameRange(VideoDataset(root), 1, 20)
    read = []
    monkeypatch.setattr(fingerprint, "SAMPLED_FRAMES", 8)
    monkeypatch.setattr(
        fingerprint, "_readable_frame", lambda source, i, t, hasher: read.append((i, t)) or ""
    )
    sampled_content(source)
    identifying = [(0, 15), (1, 3), (2, 3)]  # in numbers of the part; the others are before it
    assert read == [*identifying, (0, 0), (0, 9), (1, 0), (2, 2), (2, 12)]
