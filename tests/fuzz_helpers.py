"""Strategies that change or damage files, each with the structure of its format.

Random bytes rarely pass the first check of a parser. These strategies keep the structure intact
(checksums, offsets, archives) and change what it contains.
"""

from __future__ import annotations

import copy
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import nibabel
import numpy as np
import pydicom
import yaml
from hypothesis import reject
from hypothesis import strategies as st

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../../secret.png", "/etc/passwd", "..", "", "\0", "1" * 5000, -1, 10**12]),
    st.sampled_from(["x" * 100_000, "a\nb", "${", "${oc.env:HOME}", "\ud800", 1e308, 2**31]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)
numbers = st.sampled_from([0, 1, 2, 2**15, 2**16 - 1, 60_000, 2**31 - 1, 2**32 - 1, 2**62])


# --- Text ----------------------------------------------------------------------------------------


@st.composite
def changed(draw: Any, content: Any) -> Any:
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


def nodes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every value in a document."""
    if not isinstance(content, dict | list):
        return
    keys = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        yield from nodes(content[key])


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "replace")


def as_yaml(content: Any) -> bytes:
    return yaml.safe_dump(content).encode("utf-8", "replace")


@st.composite
def nested(draw: Any, content: bytes) -> bytes:
    """Replace a number or a text of a JSON or YAML document by thousands of levels."""
    spans = [match.span() for match in re.finditer(rb'(?<=[:,\[ ])(\d+|"[^"]*")', content)]
    depth = draw(st.sampled_from([70, 1000, 3000, 100_000]))
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")]))
    start, end = draw(st.sampled_from(spans)) if spans else (0, len(content))
    return content[:start] + opening * depth + b"1" + closing * depth + content[end:]


odd_words = st.sampled_from(["1e400", "99999999999", "-0", '"', "<a>" * 70, "&a;", "1,2;3"])


@st.composite
def changed_markup(draw: Any, content: str) -> bytes:
    """Replace attributes and texts of XML, or the words of a text; drop or repeat parts of it."""
    for _ in range(draw(st.integers(1, 3))):
        spans = [m.span(m.lastindex) for m in re.finditer(r'="([^"]*)"|>([^<>]+)<', content)]
        spans = spans or [m.span() for m in re.finditer(r"\S+", content)]
        if not spans:
            break
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
    return content.encode("utf-8", "replace")


@st.composite
def changed_lines(draw: Any, content: bytes) -> bytes:
    """Change one line of JSON Lines, cut the last one, or glue two together."""
    lines = content.splitlines(keepends=True)
    k = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["change", "change", "cut", "glue"])):
        case "change":
            lines[k] = as_json(draw(changed(json.loads(lines[k])))) + b"\n"
        case "cut":
            lines[-1] = lines[-1][: draw(st.integers(0, len(lines[-1])))]
        case _:
            lines[k] = lines[k].rstrip(b"\n")
    return b"".join(lines)


# --- Bytes ---------------------------------------------------------------------------------------


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Truncate bytes, overwrite some of them, or insert others."""
    offset = draw(st.integers(0, max(len(content) - 1, 0)))
    noise = draw(st.binary(max_size=40))
    damage = draw(st.sampled_from(["truncate", "overwrite", "insert"]))
    if damage == "truncate":
        return content[:offset]
    end = offset + (len(noise) if damage == "overwrite" else 0)
    return content[:offset] + noise + content[end:]


@st.composite
def damaged_header(draw: Any, content: bytes) -> bytes:
    """Set one to three numbers of one to four bytes in the first kilobyte to extreme values."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.sampled_from([1, 2, 4]))
        position = draw(st.integers(0, max(min(len(data), 1024) - size, 0)))
        value = draw(numbers) % 256**size
        order = draw(st.sampled_from(["little", "big"]))
        data[position : position + size] = value.to_bytes(size, order)
    return bytes(data)


@st.composite
def changed_png(draw: Any, content: bytes) -> bytes:
    """Change, drop or repeat chunks of a PNG, with correct checksums."""
    chunks, position = [], 8
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        chunks.append((content[position + 4 : position + 8], content[position + 8 :][:length]))
        position += 12 + length
    for _ in range(draw(st.integers(1, 2))):
        k = draw(st.integers(0, len(chunks) - 1))
        kind, data = chunks[k]
        match draw(st.sampled_from(["change", "change", "drop", "repeat", "text"])):
            case "change":
                chunks[k] = kind, draw(damaged_header(data) if data else st.binary(max_size=8))
            case "drop":
                del chunks[k]
            case "repeat":
                chunks.insert(k, chunks[k])
            case _:
                bomb = b"a\0\0" + zlib.compress(bytes(2**24))
                chunks.insert(1, (draw(st.sampled_from([b"zTXt", b"iCCP", b"iTXt"])), bomb))
        if not chunks:
            break
    parts = [content[:8]]
    for kind, data in chunks:
        check = zlib.crc32(kind + data)
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check))
    return b"".join(parts)


@st.composite
def changed_tiff(draw: Any, content: bytes) -> bytes:
    """Change tags of a little-endian TIFF, or the numbers in its description of the axes."""
    data, entries = bytearray(content), []
    (offset,) = struct.unpack_from("<I", data, 4)
    while offset and offset + 2 <= len(data):
        (count,) = struct.unpack_from("<H", data, offset)
        entries += [offset + 2 + 12 * k for k in range(count)]
        entries.append(offset + 2 + 12 * count - 8)  # the offset of the next page
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 4)) == 0:
            digits = list(re.finditer(rb"\d+", bytes(data[:2000])))
            if digits:
                start, end = draw(st.sampled_from(digits)).span()
                data[start:end] = str(draw(numbers)).encode()[: end - start].ljust(end - start)
                continue
        entry = draw(st.sampled_from(entries))
        part, size = draw(st.sampled_from([(0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 2)]))
        value = draw(st.one_of(numbers, st.integers(0, 300))) % 256**size
        data[entry + part : entry + part + size] = value.to_bytes(size, "little")
    return bytes(data)


@st.composite
def changed_nifti(draw: Any, content: bytes) -> bytes:
    """Change fields of an uncompressed NIfTI header."""
    data, fields = bytearray(content), nibabel.nifti1.header_dtype.fields
    for _ in range(draw(st.integers(1, 3))):
        kind, offset = fields[draw(st.sampled_from(sorted(fields)))][:2]
        item, count = kind.base, max(kind.itemsize // kind.base.itemsize, 1)
        if item.kind in "iuf":
            extreme = [0, 1, -1, 7, 2, 255, 512, 32767, np.nan, np.inf, 1e-30, 3e38]
            with np.errstate(all="ignore"):
                value = np.array(draw(st.sampled_from(extreme)), "f8").astype(item).tobytes()
        else:
            value = draw(st.binary(min_size=item.itemsize, max_size=item.itemsize))
        position = offset + item.itemsize * draw(st.integers(0, count - 1))
        data[position : position + len(value)] = value
    return bytes(data)


@st.composite
def changed_npz(draw: Any, content: bytes) -> bytes:
    """Write an archive whose arrays have other types and shapes, or claim them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(members)))
        match draw(st.sampled_from(["array", "array", "header", "rename", "drop", "damage"])):
            case "array":
                kinds = ["?", "u1", "i8", "f2", "f4", "f8", "c8", "U3", "S3", "M8[s]", "O", "V2"]
                shape = draw(st.lists(st.integers(0, 7), max_size=4))
                array = np.zeros(shape, draw(st.sampled_from(kinds)))
                if array.dtype.kind == "f" and array.size:
                    array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -1e30]))
                with io.BytesIO() as file:
                    np.save(file, array, allow_pickle=True)
                    members[name] = file.getvalue()
            case "header":
                members[name] = draw(changed_npy(members[name]))
            case "rename":
                new = st.sampled_from(["../x.npy", "gts.npy", "imgs.npy", "a", "\n.npy", "imgs"])
                members[draw(new)] = members.pop(name)
            case "drop":
                del members[name]
            case _:
                members[name] = draw(damaged(members[name]))
        if not members:
            break
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return file.getvalue()


@st.composite
def changed_npy(draw: Any, content: bytes) -> bytes:
    """Change the text of an array's header, with a correct length."""
    if len(content) < 10:  # damaged before
        return content
    (length,) = struct.unpack_from("<H", content, 8)
    text, data = content[10 : 10 + length].decode(), content[10 + length :]
    odd = ["(0,)", "(99999999, 99999999)", "(-1,)", "()", "'O'", "'<f8'", "True", "[" * 50, "1e9"]
    spans = [m.span() for m in re.finditer(r"\([^)]*\)|'[<|][^']*'|True|False", text)]
    if spans:
        start, end = draw(st.sampled_from(spans))
        text = text[:start] + draw(st.sampled_from(odd)) + text[end:]
    return content[:8] + struct.pack("<H", len(text)) + text.encode() + data


@st.composite
def changed_dicom(draw: Any, content: bytes) -> bytes:
    """Give one to three elements of a DICOM file other values, or delete them."""
    data = pydicom.dcmread(io.BytesIO(content))
    tags = [element.tag for element in data]
    odd = [
        0,
        1,
        -1,
        65535,
        7,
        12,
        "",
        "x" * 70,
        "nan",
        "1e400",
        None,
        [],
        [0, 0, 0],
        [1] * 6,
        b"\1",
    ]
    for _ in range(draw(st.integers(1, 3))):
        tag = draw(st.sampled_from(tags))
        if draw(st.integers(0, 3)) == 0:
            data.pop(tag, None)
            continue
        try:
            data[tag].value = draw(st.sampled_from(odd))
        except Exception:
            reject()
    with io.BytesIO() as file:
        try:
            data.save_as(file, enforce_file_format=True)
        except Exception:  # it cannot be written
            reject()
        return file.getvalue()


@st.composite
def changed_mp4(draw: Any, content: bytes) -> bytes:
    """Change the size, the name or a number of boxes of an MP4 file."""
    data, boxes = bytearray(content), list(mp4_boxes(content, 0, len(content)))
    for _ in range(draw(st.integers(1, 3))):
        start, size = draw(st.sampled_from(boxes))
        inside = st.integers(8, max(min(size, 200) - 4, 8))
        position = start + draw(st.one_of(st.sampled_from([0, 4]), inside, inside))
        data[position : position + 4] = (draw(numbers) % 2**32).to_bytes(4, "big")
    return bytes(data)


def mp4_boxes(content: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of the boxes of an MP4 file, also of inner ones."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        if size < 8:
            return
        yield start, size
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"):
            yield from mp4_boxes(content, start + 8, start + size)
        start += size


STRUCTURES: dict[str, Callable[[bytes], Any]] = {
    ".png": changed_png,
    ".tif": changed_tiff,
    ".nii": changed_nifti,
    ".npz": changed_npz,
    ".dcm": changed_dicom,
    ".mp4": changed_mp4,
    ".json": lambda content: changed(json.loads(content)).map(as_json),
    ".jsonl": changed_lines,
    ".yaml": lambda content: changed(yaml.safe_load(content)).map(as_yaml),
    ".xml": lambda content: changed_markup(content.decode()),
    ".txt": lambda content: changed_markup(content.decode()),
    ".csv": lambda content: changed_markup(content.decode()),
}


def cases(content: bytes, ending: str) -> Any:
    """Return the strategy for a file: mostly its structure, sometimes its bytes."""
    if (structure := STRUCTURES.get(ending)) is None:
        return st.one_of(damaged(content), damaged_header(content))
    strategies = [structure(content), structure(content), damaged(content)]
    if ending in (".json", ".jsonl", ".yaml"):
        strategies.append(nested(content))
    return st.one_of(strategies)
