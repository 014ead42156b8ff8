"""The structure of a file, read by pyelftools after the native piece has checked every offset and count."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from elftools.common.utils import struct_parse
from elftools.elf.dynamic import Dynamic
from elftools.elf.elffile import ELFFile

from rift_core.errors import BinaryError
from rift_loader_elf._native import ffi, lib
from rift_loader_elf.native_error import new_error, printable, raise_error

if TYPE_CHECKING:
    from rift_core.file_image import FileImage

_NOT_SERVED = {
    "DT_REL": "REL relocations (without addends)",
    "DT_ANDROID_REL": "packed Android relocations",
    "DT_ANDROID_RELA": "packed Android relocations",
    "DT_ANDROID_RELR": "packed Android relocations",
    0x6000000F: "packed Android relocations",  # DT_ANDROID_REL, where pyelftools has no name for it
    0x60000011: "packed Android relocations",  # DT_ANDROID_RELA
    0x6FFFE000: "packed Android relocations",  # DT_ANDROID_RELR
}


@dataclass(frozen=True, slots=True)
class Load:
    """One PT_LOAD header that takes memory: addresses as in the file, without bias.

    ``header`` is where in the file the header stands; ``offset`` is 0 where ``file_size`` is.
    """

    header: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    flags: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What the loader needs to know. Loads ascend by address and are disjoint.

    ``tags`` are the dynamic section's entries by name (an int where it has none), without DT_NEEDED; None when
    there is no PT_DYNAMIC, which else stands at ``dynamic_offset`` of the file. ``alignment`` is the largest
    ``p_align``, a power of two.
    """

    machine: int
    position_independent: bool
    entry: int
    alignment: int
    loads: tuple[Load, ...]
    tags: dict[str | int, int] | None
    dynamic_offset: int
    needed: tuple[str, ...]
    interpreter: str | None
    has_tls: bool


class _Stream:
    """The image as pyelftools wants it: what it reads is copied, the rest is not."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._view)}
        self._position = max(0, starts[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        end = len(self._view) if count < 0 else self._position + count
        data = bytes(self._view[self._position : end])
        self._position += len(data)
        return data


class Names:
    """A string table of the file that reads a bounded number of bytes; pyelftools takes it for one of its own."""

    def __init__(self, image: FileImage, offset: int, size: int) -> None:
        self._image = image
        self._start = offset if offset <= image.size else 0
        self._size = size if offset + size <= image.size else 0

    def get_string(self, offset: int) -> str:
        length = lib.rift_elf_string_length(self._image.data + self._start, self._size, offset)
        if length < 0:
            return f"number {offset}"
        start = self._start + offset
        return printable(bytes(self._image.view[start : start + length]))


def file_offset(image: FileImage, loads: tuple[Load, ...], address: int, size: int, what: str, at: int) -> int:
    """Where in the file the bytes for ``size`` bytes at ``address`` stand.

    :param at: the file offset of what names the address, for the message.
    :raises BinaryError: no segment holds them all.
    """
    for load in loads:
        if load.address <= address and address + size <= load.address + load.file_size:
            return load.offset + address - load.address
    raise BinaryError(
        f"{image.path}: offset {at:#x}: {what}: {size:#x} bytes at {address:#x} lie outside the file's part of every "
        "segment"
    )


def _read_loads(elf: ELFFile, summary: Any) -> tuple[Load, ...]:
    loads = []
    size = elf.structs.Elf_Phdr.sizeof()
    for index in range(summary.program_headers):
        at = summary.program_header_offset + index * size
        header = struct_parse(elf.structs.Elf_Phdr, elf.stream, at)
        if header["p_type"] != "PT_LOAD" or header["p_memsz"] == 0:
            continue
        file_size = header["p_filesz"]
        loads.append(
            Load(
                header=at,
                offset=header["p_offset"] if file_size else 0,
                address=header["p_vaddr"],
                file_size=file_size,
                memory_size=header["p_memsz"],
                flags=header["p_flags"],
                alignment=header["p_align"],
            )
        )
    return tuple(sorted(loads, key=lambda load: load.address))


def _read_dynamic(
    image: FileImage, elf: ELFFile, loads: tuple[Load, ...], summary: Any
) -> tuple[dict[str | int, int], tuple[str, ...]]:
    """Tags but DT_NEEDED, and the names of the needed libraries; the native check has bounded their number."""
    tags: dict[str | int, int] = {}
    needed: list[int] = []
    numbers = Dynamic(elf.stream, elf, Names(image, 0, 0), summary.dynamic_offset, False)
    for tag in numbers.iter_tags():
        name = tag.entry.d_tag
        if name == "DT_NULL":
            break
        if name == "DT_NEEDED":
            needed.append(tag.entry.d_val)
        else:
            tags.setdefault(name, tag.entry.d_val)
    for name, what in _NOT_SERVED.items():
        if name in tags:
            raise BinaryError(
                f"{image.path}: offset {summary.dynamic_offset:#x}: PT_DYNAMIC: {what} are not supported; "
                "link without --pack-dyn-relocs=android, for example with GNU ld"
            )
    if not needed:
        return tags, ()
    size = tags.get("DT_STRSZ", 0)
    start = file_offset(image, loads, tags.get("DT_STRTAB", 0), size, "DT_STRTAB", summary.dynamic_offset)
    names = Names(image, start, size)
    return tags, tuple(names.get_string(offset) for offset in needed[:16])


def read_structure(image: FileImage, max_memory: int) -> Structure:
    """Check the file in C, then read its headers and dynamic section.

    :raises BinaryError: the file is damaged, or of a kind that cannot be loaded.
    """
    summary = ffi.new("struct rift_elf_summary *")
    error = new_error()
    if lib.rift_elf_file_check(image.data, image.size, max_memory, summary, error) != 0:
        raise_error(image.path, error)
    elf = ELFFile(cast("IO[bytes]", _Stream(image.view)))
    loads = _read_loads(elf, summary)
    tags, needed = _read_dynamic(image, elf, loads, summary) if summary.dynamic_entries else (None, ())
    start = summary.interpreter_offset
    interpreter = bytes(image.view[start : start + summary.interpreter_size])
    return Structure(
        machine=summary.machine,
        position_independent=summary.type == lib.RIFT_ELF_ET_DYN,
        entry=summary.entry,
        alignment=summary.alignment,
        loads=loads,
        tags=tags,
        dynamic_offset=summary.dynamic_offset,
        needed=needed,
        interpreter=printable(interpreter) if interpreter else None,
        has_tls=bool(summary.has_tls),
    )
