"""What a loader makes of an executable file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.memory import Gva, Permission
    from rift_core.payload import BuiltPayload


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes to appear at a guest-virtual address.

    ``data`` holds the file's part, already relocated, at most ``memory_size`` bytes; the rest is zero.
    Neither address nor size need be page-aligned, and two segments may share a page (their permissions
    then add up on that page).

    When ``mappable`` is true, ``data`` is a view into a private file mapping whose address is congruent
    to ``address`` modulo ``page_size``; core may then put whole pages of it into the guest without a
    copy. ``writable`` data of a private mapping is copy-on-write and never reaches the file.
    """

    address: Gva
    memory_size: int
    data: memoryview
    permissions: Permission
    name: str = ""
    mappable: bool = False


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named address; ``size`` is 0 where the file does not say."""

    name: str
    address: Gva
    size: int


class SymbolTable(Protocol):
    """Symbols, looked up without an object for each."""

    def find(self, name: str) -> Symbol | None:
        """The symbol of that exact name, global ones before local ones."""

    def nearest(self, address: int) -> Symbol | None:
        """The symbol that contains ``address``, or the closest below it in the same segment."""

    def similar(self, name: str, limit: int = 5) -> list[str]:
        """Names that look like ``name``, best first, for error messages."""

    def __iter__(self) -> Iterator[Symbol]:
        """All symbols, lazily."""

    def __len__(self) -> int:
        """How many there are."""


class NoSymbols:
    """The empty table, for raw code."""

    def find(self, name: str) -> Symbol | None:
        """Nothing is found."""
        return None

    def nearest(self, address: int) -> Symbol | None:
        """Nothing is near."""
        return None

    def similar(self, name: str, limit: int = 5) -> list[str]:
        """Nothing is similar."""
        return []

    def __iter__(self) -> Iterator[Symbol]:
        """No symbols."""
        return iter(())

    def __len__(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Binary:
    """A parsed, checked and relocated executable. ``path`` is None for raw code.

    ``owner`` keeps whatever the views point into alive (the file mapping). ``slide`` is how far the image stands above
    the addresses that its file names, modulo 2**64: what debuggers must add to them. ``abi`` is the variant of the C
    calling convention that its functions were compiled for: "" is the ISA's own, "apple" that of Apple's systems where
    it differs, which it does on AArch64. ``built`` is core's: where the file was built from a source first.
    """

    path: Path | None
    format: str
    isa: str
    entry: Gva | None
    segments: tuple[Segment, ...]
    symbols: SymbolTable = field(default_factory=NoSymbols)
    owner: object = None
    slide: int = 0
    abi: str = ""
    built: BuiltPayload | None = None

    @property
    def title(self) -> str:
        """What messages call it: the source that it was built from, else the file."""
        return str(self.path or "the code") if self.built is None else str(self.built.source)
