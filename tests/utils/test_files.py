"""Files are written completely or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from sam2kit.utils.files import (
    atomic_write,
    check_writable,
    end_last_line,
    open_to_append,
    temporary_path,
    write_text,
)
from sam2kit.utils.locks import acquire


def test_a_failed_write_keeps_only_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def write_nothing(path):
    with atomic_write(path):
        pass


@pytest.mark.parametrize("write", [write_nothing, check_writable])
def test_the_first_write_to_a_folder_removes_what_killed_processes_left(tmp_path, write):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living, other = f"{os.getpid():08x}", temporary_path(tmp_path).name[14:]
    ours = tmp_path / f".part-{dead.pid:08x}{other}.nii"
    old = tmp_path / f".part-{living}{'0' * 24}"  # of another machine
    foreign = [old.with_name(old.name.replace("0" * 24, "1" * 24)), temporary_path(tmp_path)]
    foreign += [tmp_path / name for name in (".part-1", "a.part", f"x.part-{dead.pid:08x}{other}")]
    for path in (ours, old, *foreign):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    link = tmp_path / f".part-{dead.pid:08x}{other}"
    link.symlink_to(foreign[-1])
    write(tmp_path / "a.txt")
    assert set(tmp_path.iterdir()) == {link, *foreign}


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "1"  # of the one that ended last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_file_has_default_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a", fsync=True, suffix=".gz") as part:
        part.write_bytes(b"x")
        assert part.suffix == ".gz" and not (tmp_path / "a").exists()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_fsync_flushes_before_the_replacement(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda file: order.append(f"fsync {os.fstat(file).st_size}"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: order.append("replace") or replace(*a))
    with atomic_write(tmp_path / "a", fsync=True) as part:
        part.write_bytes(b"abc")
    assert order == ["fsync 3", "replace"]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 9000])
def test_a_line_without_end_is_removed_or_ended(tmp_path, length):
    path, line = tmp_path / "lines", "x" * length
    assert end_last_line(path, bool) == ""  # no such file
    for first in ("", "a\n", "a\n" * 3000):
        path.write_text(first + line)
        assert end_last_line(path, lambda text: False) == line
        assert path.read_text() == first
        path.write_text(first + line)
        assert end_last_line(path, lambda text: text == line) == ""
        assert path.read_text() == first + (f"{line}\n" if line else "")


def test_errors_of_a_full_disk_name_the_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt") and not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "missing" / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "missing" / "a.txt")


def test_links_are_not_followed_to_files_that_are_changed(tmp_path):
    """In a downloaded folder, a log or a lock may be a link to a file of the user."""
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("mine")
    link.symlink_to(mine)
    for change in (open_to_append, acquire, lambda path: end_last_line(path, bool)):
        with pytest.raises(OSError, match="symbolic link") as error:
            change(link)
        assert error.value.filename == str(link)
    write_text(link, "new")
    assert mine.read_text() == "mine" and link.read_text() == "new" and not link.is_symlink()
