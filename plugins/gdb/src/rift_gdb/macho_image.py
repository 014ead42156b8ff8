"""A Mach-O payload as LLDB wants it told.

LLDB keeps such a file only if the server says that it runs on one of Apple's systems, and finds its place by asking
the server what macOS's loader has loaded: without an answer it drops the file. All that is read here stands in the
segment that shows the file's header; the guest may have written there, so that nothing is trusted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.binary import Binary

# <mach-o/loader.h>
_MAGIC = 0xFEEDFACF  # MH_MAGIC_64
_HEADER = struct.Struct("<IIIIIIII")  # mach_header_64
_COMMAND = struct.Struct("<II")  # load_command: kind, size
_SEGMENT = struct.Struct("<II16sQQQQiiII")  # segment_command_64
_SEGMENT_KIND, _UUID_KIND = 0x19, 0x1B
_SUBTYPE = 0x00FF_FFFF  # without the capability bits

_MOST_COMMANDS = 4096
_MOST_SEGMENTS = 128  # an answer has to fit into one packet
_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class MachoImage:
    """Where a payload's header stands in the guest, and what it says.

    :param header: ``mach_header_64`` up to ``flags``, by the names that LLDB knows.
    :param segments: ``segment_command_64``, likewise.
    :param uuid: of the file, as text; empty: it has none.
    """

    address: int
    header: dict[str, int]
    segments: tuple[dict[str, Any], ...]
    uuid: str

    @property
    def cpu(self) -> tuple[int, int]:
        """Apple's numbers of the CPU's type and subtype."""
        return self.header["cputype"], self.header["cpusubtype"] & _SUBTYPE

    def describe(self, path: Path) -> dict[str, Any]:
        """One of the ``images`` of ``jGetLoadedDynamicLibrariesInfos``."""
        try:
            modified = int(path.stat().st_mtime)
        except OSError:
            modified = 0
        return {
            "load_address": self.address,
            "mod_date": modified,
            "pathname": str(path),
            "uuid": self.uuid,
            "mach_header": self.header,
            "segments": self.segments,
        }


def read_image(binary: Binary) -> MachoImage | None:
    """What a payload's header says; None: it is no Mach-O file, or its header is in no segment."""
    for segment in binary.segments:
        image = _read(segment.address, segment.data, binary.slide)
        if image is not None:
            return image
    return None


def _read(address: int, data: memoryview, slide: int) -> MachoImage | None:
    """The image whose header ``data`` begins with; None: it is no header of one that stands at ``address``."""
    if len(data) < _HEADER.size:
        return None
    magic, cpu, subtype, kind, count, size, flags, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    segments: list[dict[str, Any]] = []
    uuid = ""
    for command, content in _commands(data[: _HEADER.size + size], count):
        if command == _SEGMENT_KIND and len(content) >= _SEGMENT.size and len(segments) < _MOST_SEGMENTS:
            _, _, name, start, memory, offset, length, most, initial, sections, bits = _SEGMENT.unpack_from(content)
            segments.append({
                "name": name.rstrip(b"\0").decode("ascii", "replace"),
                "vmaddr": start, "vmsize": memory, "fileoff": offset, "filesize": length,
                "maxprot": most, "initprot": initial, "nsects": sections, "flags": bits,
            })  # fmt: skip
        elif command == _UUID_KIND and len(content) >= _COMMAND.size + 16:
            uuid = str(UUID(bytes=bytes(content[_COMMAND.size : _COMMAND.size + 16]))).upper()
    if not any((each["vmaddr"] + slide) % _MODULUS == address and each["fileoff"] == 0 for each in segments):
        return None
    header = {
        "magic": magic, "cputype": cpu, "cpusubtype": subtype, "filetype": kind,
        "ncmds": count, "sizeofcmds": size, "flags": flags,
    }  # fmt: skip
    return MachoImage(address, header, tuple(segments), uuid)


def _commands(data: memoryview, count: int) -> Iterator[tuple[int, memoryview]]:
    """Kind and bytes of each load command, as far as they lie in ``data``."""
    position = _HEADER.size
    for _ in range(min(count, _MOST_COMMANDS)):
        if position + _COMMAND.size > len(data):
            return
        kind, size = _COMMAND.unpack_from(data, position)
        if size < _COMMAND.size or position + size > len(data):
            return
        yield kind, data[position : position + size]
        position += size
