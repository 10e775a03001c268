"""Read untrusted JSON, YAML and XML files within limits, with one clear error for each fault.

The files may be hostile: a few hundred bytes of YAML anchors can expand to gigabytes, deep
nesting overflows the stack of a recursive parser, and an XML entity can read a local file. All
readers of the package use this module. Each limit is far above what the supported tools write, and
low enough that a file within it is read in seconds and in about a gigabyte of memory.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2kit.utils.errors import ConfigError, DataError, SAM2KitError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MIB = 1 << 20
# SA-V files have up to 30 MB. Python objects need 4 to 10 times the memory of the text.
MAX_JSON_BYTES = 256 * MIB
MAX_MASKS_BYTES = 4 * MAX_JSON_BYTES  # JSON of sam2kit with masks: 2 million of 500 bytes
MAX_DATA_BYTES = 16384 * MIB  # COCO JSON: it is indexed in memory-mapped form, not loaded
MAX_YAML_BYTES = MIB // 4  # a configuration has 30 kB; PyYAML reads about 100 kB per second
MAX_XML_BYTES = 1 << 30  # a CVAT task of 10,000 frames with 20 polygons each has 100 MB
MAX_DEPTH = 64  # levels of nesting; Label Studio needs 9, a configuration 5, CVAT's XML 6
MAX_YAML_NODES = 20_000  # with all aliases expanded; a complete configuration has 500
MAX_XML_NODES = 5_000_000  # elements, of about 200 bytes each in memory
MAX_FRAMES = 10_000_000  # of one video: a day at 100 frames per second has 8,640,000
# Of one mask: 16,384 squared, 256 MB. Frames of stacks may be larger than an image file.
MAX_PIXELS = 1 << 28


def read_json(
    path: str | Path,
    *,
    hint: str = "export the file again",
    error: type[SAM2KitError] = DataError,
    max_bytes: int = MAX_JSON_BYTES,
    non_finite: bool = False,
) -> Any:
    """Read a JSON file.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        hint: the fix, for error messages.
        error: class of the errors.
        max_bytes: maximum size of the file.
        non_finite: whether to accept ``NaN`` and ``Infinity``, which are not JSON but which the
            scores of this package contain.

    Raises:
        FileNotFoundError: the file does not exist; callers handle this case.
        SAM2KitError: of class ``error``: the file is unreadable, too large, not JSON, or nested too
            deeply. It names the file and, for a syntax error, line and column.
    """
    return parse_json(_read_bytes(path, error, hint, max_bytes), str(path), hint, error, non_finite)


def parse_json(
    text: str | bytes,
    where: str,
    hint: str = "export the file again",
    error: type[SAM2KitError] = DataError,
    non_finite: bool = False,
) -> Any:
    """Parse JSON text with the checks of :func:`read_json`.

    Args:
        text: the text, or its UTF-8 bytes.
        where: name of the text, with which error messages start.
        hint, error, non_finite: see :func:`read_json`.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        content = json.loads(text, parse_constant=None if non_finite else _reject_constant)
    except RecursionError:
        raise _too_deep(where, error, hint) from None
    except ValueError as fault:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise error(f"{where} is not a JSON file: {fault}", hint=hint) from fault
    check_depth(content, where, hint, error)
    return content


def check_depth(
    content: Any,
    where: str,
    hint: str = "export the file again",
    error: type[SAM2KitError] = DataError,
) -> None:
    """Raise ``error`` if dictionaries and lists are nested more than :data:`MAX_DEPTH` levels."""
    # Level by level, because a recursive walk would overflow the stack that it protects.
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise _too_deep(where, error, hint)


def read_yaml(
    path: str | Path,
    *,
    hint: str = "correct the syntax at that line",
    error: type[SAM2KitError] = ConfigError,
    interpolations: bool = True,
) -> Any:
    """Read a YAML file as plain values.

    Args:
        path: a UTF-8 file.
        hint: the fix of a syntax error.
        error: class of the errors.
        interpolations: whether the file is a configuration (default), which is read with
            OmegaConf's rules for numbers; interpolations (``${...}``) are checked, but not
            resolved. If False, ``${`` is plain text.

    Returns:
        The content; an empty dictionary or None for an empty file.

    Raises:
        FileNotFoundError: the file does not exist.
        SAM2KitError: of class ``error``: the file is unreadable, too large, not YAML, nested too
            deeply, expands to too many values, refers to itself, or has an invalid interpolation.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    data = _read_bytes(path, error, "give a configuration file", MAX_YAML_BYTES)
    try:
        text = data.decode("utf-8-sig")
        _check_yaml(yaml.parse(text, _yaml_loader()), str(path), error)
        if not interpolations:
            return yaml.load(text, _yaml_loader())  # noqa: S506 (a safe loader)
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise error(f"{path} is not a YAML file: {on_one_line(fault)}", hint=hint) from fault
    except OmegaConfBaseException as fault:
        message = f"{path} has an invalid key or value: {on_one_line(fault)}"
        raise error(message, hint="correct it, or quote text with special characters") from fault
    except OSError as fault:  # OmegaConf raises it for a single number or text
        message = f"{path} contains a single value instead of keys"
        raise error(message, hint="write keys such as model: and dataset:") from fault
    except (TypeError, ValueError, RecursionError) as fault:
        message = f"{path} has an invalid value: {on_one_line(fault)}"
        raise error(message, hint="correct or quote it") from fault


def _yaml_loader() -> Any:
    """Return libyaml's parser, which is 20 times faster, or Python's if it is missing."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_yaml(events: Iterator[Any], path: str, error: type[SAM2KitError]) -> None:
    """Check nesting and the number of values with all aliases expanded, before anything is built.

    Args:
        events: the events of the parser.
        path: the file, for error messages.
        error: class of the errors.
    """
    import yaml

    # Per open collection: its anchor and the number of values before it.
    stack: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}  # number of values of each anchored collection, aliases expanded
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in stack):
                raise error(
                    f"{path}{_line(event)}: the value of anchor {event.anchor!r} contains itself",
                    hint=f"write the values instead of *{event.anchor}",
                )
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, count))
            count += 1
            if len(stack) > MAX_DEPTH:
                raise _too_deep(f"{path}{_line(event)}", error, "write fewer levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = stack.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        if count > MAX_YAML_NODES:
            raise error(
                f"{path}{_line(event)}: with its anchors (&) and aliases (*) expanded the file "
                f"has more than {MAX_YAML_NODES} values",
                hint="write the values without aliases",
            )


def _line(event: Any) -> str:
    return f", line {event.start_mark.line + 1}" if event.start_mark else ""


def read_xml(path: str | Path, *, hint: str = "export the file again") -> Element:
    """Read an XML file and return its root element.

    Document type definitions, entities and external references are rejected: annotation tools
    write none, and they can expand to any size or read other files.

    Args:
        path: the file.
        hint: the fix, for error messages.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is unreadable, too large, not XML, nested too deeply, has too many
            elements, or has a document type definition or entities.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    data = _read_bytes(path, DataError, hint, MAX_XML_BYTES)
    root: Element | None = None
    depth = count = 0
    try:
        for kind, element in iterparse(io.BytesIO(data), ("start", "end"), forbid_dtd=True):
            if kind == "end":
                depth -= 1
                continue
            root = element if root is None else root
            depth, count = depth + 1, count + 1
            if depth > MAX_DEPTH:
                raise _too_deep(str(path), DataError, hint)
            if count > MAX_XML_NODES:
                message = f"{path} has more than {MAX_XML_NODES} elements"
                raise DataError(message, hint="export it in several parts")
    except DefusedXmlException as fault:
        message = f"{path} has a document type definition or entities, which are not allowed"
        raise DataError(
            message, hint="remove the lines <!DOCTYPE ...> and <!ENTITY ...>"
        ) from fault
    # The encoding that the file declares may be unknown, which is a LookupError or ValueError.
    except (ParseError, LookupError, ValueError) as fault:
        raise DataError(f"{path} is not an XML file: {fault}", hint=hint) from fault
    assert root is not None  # a file without an element is a ParseError
    return root


def read_text(
    path: str | Path,
    *,
    hint: str = "save it as UTF-8 text",
    max_bytes: int = MAX_JSON_BYTES,
    strict: bool = True,
) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Args:
        path, hint, max_bytes: see :func:`read_json`.
        strict: whether invalid UTF-8 is an error (default). If False, it is replaced with U+FFFD.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is unreadable, too large, or not UTF-8.
    """
    data = _read_bytes(path, DataError, hint, max_bytes)
    try:
        return data.decode("utf-8-sig", "strict" if strict else "replace")
    except UnicodeDecodeError as fault:
        raise DataError(f"{path} is not a UTF-8 text file: {fault}", hint=hint) from fault


def check_types(
    content: Any,
    kind: Any,
    where: object,
    hint: str,
    error: type[SAM2KitError] = DataError,
) -> None:
    """Check the types of the required fields of a parsed JSON file.

    Args:
        content: the parsed file.
        kind: a type that msgspec checks, such as a ``TypedDict``; other keys are not checked.
        where: name of the file.
        hint: the fix.
        error: class of the error.

    Raises:
        SAM2KitError: of class ``error``: a key is missing or a value has another type.
    """
    import msgspec

    try:
        msgspec.convert(content, kind)
    except ValueError as fault:  # msgspec.ValidationError is one
        raise error(f"{where} is damaged or from another version: {fault}", hint=hint) from fault


@contextmanager
def damage_is(error: type[SAM2KitError], where: object, hint: str) -> Iterator[None]:
    """Convert errors about missing keys and invalid values in a file to ``error``.

    Use it for files that only this package writes, with too many variants for
    :func:`check_types`.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as fault:
        message = f"{where} has an invalid value ({type(fault).__name__}: {fault})"
        raise error(message, hint=hint) from fault


def check_size(
    path: str | Path,
    max_bytes: int,
    hint: str = "export it in several parts",
    error: type[SAM2KitError] = DataError,
) -> int:
    """Return the size of a file in bytes, and raise ``error`` if it is above the maximum.

    Only regular files are accepted: reading a named pipe can block indefinitely.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file", hint="give a regular file")
    size = status.st_size
    if size > max_bytes:
        message = f"{path} has {size / MIB:,.1f} MiB; the maximum is {max_bytes / MIB:,.2f}"
        raise error(message, hint=hint)
    return size


def on_one_line(fault: BaseException) -> str:
    """Return the text of an exception on one line."""
    return " ".join(str(fault).split())


def _read_bytes(path: str | Path, error: type[SAM2KitError], hint: str, max_bytes: int) -> bytes:
    try:
        check_size(path, max_bytes, "use a smaller file", error)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as fault:  # ValueError: a path with a null character
        raise error(f"{path} cannot be read: {fault}", hint=hint) from fault


def _too_deep(where: str, error: type[SAM2KitError], hint: str) -> SAM2KitError:
    return error(f"{where} is nested more than {MAX_DEPTH} levels deep", hint=hint)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
