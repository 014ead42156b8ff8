"""Setting an image's pointers: rebased to where it stands, bound to symbols that it defines itself."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NoReturn

from rift_core.errors import BinaryError
from rift_core.file_image import check_unshared
from rift_loader_macho._native import ffi, lib
from rift_loader_macho.native_error import new_error, printable, raise_error

if TYPE_CHECKING:
    from rift_core.binary import SymbolTable
    from rift_loader_macho.structure import MachoImage, Structure

OWN_IMPORTS_MAX = 64
"""Symbols of its own that an image may import by name. Those are weak definitions; C has few of them."""

_UNBOUND = 0xFFFFFFFFFFFFFFFE  # RIFT_MACHO_UNBOUND


class Fixups:
    """The pointers of one image that is to stand ``slide`` bytes above where it was linked (modulo 2**64)."""

    def __init__(self, image: MachoImage, structure: Structure, slide: int, symbols: SymbolTable) -> None:
        self._image = image
        self._structure = structure
        self._slide = slide
        self._symbols = symbols
        self._targets = ffi.new("struct rift_macho_target[]", len(structure.loads))
        for target, load in zip(self._targets, structure.loads, strict=True):
            target.address, target.memory_size = load.address, load.memory_size
            target.size, target.offset = load.file_size, load.offset
            target.bytes = image.file.data + image.origin + load.offset
        self._bound: Any = ffi.NULL
        self._bound_count = 0

    def apply(self) -> list[bool]:
        """Check all, then write all, into the file's private bytes. Returns which of the segments were written to.

        :raises BinaryError: a table is damaged, or needs a symbol that the image does not define.
        """
        self._check_relocations()
        if self._structure.chained_fixups is None and self._structure.dyld_info is None:
            return [False] * len(self._structure.loads)
        self._run(write=False)
        touched = [bool(target.touched) for target in self._targets]
        origin = self._image.origin
        check_unshared(
            self._image.path,
            (
                (origin + load.offset, load.file_size, hit)
                for load, hit in zip(self._structure.loads, touched, strict=True)
            ),
        )
        if any(touched):
            self._run(write=True)
        return touched

    def _check_relocations(self) -> None:
        """Relocations of the time before dyld's opcodes, which no linker of today writes into a program."""
        table = self._structure.dynamic_symbols
        if table is None:
            return
        where = f"{self._image.path}: offset {self._image.origin + self._structure.summary.dynamic_symbols_at:#x}"
        if table.nextrel:
            raise BinaryError(
                f"{where}: nextrel: {int(table.nextrel)} pointers are bound by external relocations, which are not "
                "supported; link with -fixup_chains or for macOS 10.6 or newer"
            )
        if table.nlocrel and self._slide:
            raise BinaryError(
                f"{where}: nlocrel: {int(table.nlocrel)} pointers are rebased by local relocations, which are not "
                "supported; leave out base, or link with -fixup_chains or for macOS 10.6 or newer"
            )

    def _fixer(self, write: bool) -> Any:
        fixer = ffi.new("struct rift_macho_fixer *")
        fixer.image = self._image.cdata
        fixer.slide = self._slide
        fixer.header_address = self._structure.summary.header_address
        fixer.write = write
        fixer.targets = self._targets
        fixer.target_count = len(self._structure.loads)
        fixer.bound = self._bound
        fixer.bound_count = self._bound_count
        return fixer

    def _run(self, *, write: bool) -> None:
        if self._structure.chained_fixups is not None:
            self._run_chains(write)
        elif self._structure.dyld_info is not None:
            self._run_opcodes(write)

    def _run_opcodes(self, write: bool) -> None:
        info, error = self._structure.dyld_info, new_error()
        fixer, found = self._fixer(write), ffi.new("struct rift_macho_import *")
        if lib.rift_macho_rebase(fixer, info.rebase_off, info.rebase_size, error) != 0:
            raise_error(self._image.path, error)
        for offset, size, lazy in (
            (info.bind_off, info.bind_size, False),
            (info.lazy_bind_off, info.lazy_bind_size, True),
        ):
            status = lib.rift_macho_bind(fixer, offset, size, lazy, found, error)
            if status < 0:
                raise_error(self._image.path, error)
            if status:
                self._refuse(found, int(found.name))

    def _run_chains(self, write: bool) -> None:
        offset, size = self._structure.chained_fixups or (0, 0)
        if not self._structure.summary.has_header:
            raise BinaryError(
                f"{self._image.path}: offset {self._image.origin:#x}: LC_DYLD_CHAINED_FIXUPS: no segment shows the "
                "file's header, from which chained fixups count"
            )
        error = new_error()
        if lib.rift_macho_chains(self._fixer(write), offset, size, error) == 0:
            return
        if error.error.code == errno.ENOENT and not self._bound_count:
            self._bind(offset, size)
            error = new_error()
            if lib.rift_macho_chains(self._fixer(write), offset, size, error) == 0:
                return
        if error.error.code != errno.ENOENT:
            raise_error(self._image.path, error)
        self._refuse(self._import(offset, size, int(error.value)), int(error.offset) - self._image.origin)

    def _import(self, offset: int, size: int, index: int) -> Any:
        """That import of the chained fixups, as ``struct rift_macho_import *``; None if there are not so many."""
        found, error = ffi.new("struct rift_macho_import *"), new_error()
        status = lib.rift_macho_chained_import(self._image.cdata, offset, size, index, found, error)
        if status < 0:
            raise_error(self._image.path, error)
        return found if status else None

    def _bind(self, offset: int, size: int) -> None:
        """Find the imports that need nobody else: weak ones that nobody has, and the image's own definitions."""
        bound: list[int] = []
        for index in range(OWN_IMPORTS_MAX):
            entry = self._import(offset, size, index)
            if entry is None:
                break
            bound.append(self._address_of(entry))
        self._bound = ffi.new("uint64_t[]", bound or [_UNBOUND])
        self._bound_count = max(1, len(bound))

    def _address_of(self, entry: Any) -> int:
        find = getattr(self._symbols, "find_spelled", None)
        if entry.library <= 0 and entry.name and find is not None:
            symbol = find(self._name(entry))
            if symbol is not None:
                return int(symbol.address + entry.addend) % (1 << 64)
        return 0 if entry.is_weak else _UNBOUND

    def _name(self, entry: Any) -> str:
        return bytes(self._image.bytes_at(entry.name, entry.name_size)).decode("utf-8", "backslashreplace")

    def _refuse(self, entry: Any, at: int) -> NoReturn:
        name = f"number {entry.index}"
        if entry.name:
            name = printable(self._name(entry).encode("utf-8", "backslashreplace"))
        libraries = self._structure.libraries
        where = f" of {libraries[entry.library - 1]}" if 0 < entry.library <= len(libraries) else ""
        remedy = "define it in the payload: a guest has no libraries"
        if entry.library <= 0 and entry.index >= OWN_IMPORTS_MAX:
            remedy = f"more than {OWN_IMPORTS_MAX} symbols are imported: compile with -fvisibility=hidden"
        at += self._image.origin
        raise BinaryError(f"{self._image.path}: offset {at:#x}: the file needs the symbol {name}{where}; {remedy}")
