"""What every loader must do. A plugin's tests subclass :class:`LoaderConformance` and provide two fixtures::

    class TestMyLoader(LoaderConformance):
        @pytest.fixture
        def plugin(self):
            return rift_my_loader          # the module, or object, with the hook implementations

        @pytest.fixture
        def good_file(self):
            return GoodFile(data=..., isa="x86_64", entry=0x1000, memory={0x1000: b"..."}, symbols={"start": 0x1000})

Anything but a Binary or a BinaryError for a damaged file is a failure: another exception, None, a crash, a file
that takes longer than ``time_limit`` seconds or more than ``memory_limit`` bytes.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pluggy
import pytest

from rift_core import hookspecs
from rift_core.binary import Binary
from rift_core.errors import BinaryError
from rift_core.host_memory import buffer_address
from rift_core.memory import Permission
from rift_core.plugin import PROJECT, PluginInfo, Section
from rift_core.testing.tools import skip_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Load = Callable[[Path], Binary | None]


@dataclass(frozen=True)
class GoodFile:
    """An executable and what a loader must make of it.

    :param data: the file's bytes.
    :param memory: bytes by guest-virtual address that the loaded image must show, relocated; zeros of a ``.bss``
        may be among them.
    :param permissions: by guest-virtual address; USER does not count.
    :param symbols: addresses by name.
    :param magic_size: a file whose first ``magic_size`` bytes differ from ``data`` may be of another format.
    """

    data: bytes
    isa: str
    entry: int | None
    memory: Mapping[int, bytes] = field(default_factory=dict)
    permissions: Mapping[int, Permission] = field(default_factory=dict)
    symbols: Mapping[str, int] = field(default_factory=dict)
    magic_size: int = 4


FOREIGN = {
    "text": b"[binary]\npath = 'payload'\n",
    "script": b"#!/bin/sh\nexit 0\n",
    "DOS": b"MZ" + bytes(1022),
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(1017),
    "Mach-O": b"\xcf\xfa\xed\xfe" + bytes(1020),
    "fat Mach-O": b"\xca\xfe\xba\xbe" + bytes(1020),
    "zeros": bytes(1024),
    "one byte": b"\xf4",
}
"""Beginnings of other formats; the one that a good file shares is left out."""

_MAPS = Path("/proc/self/maps")

ABSURD = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 63, (1 << 64) - 1)
"""Values that fields of a damaged file hold: edges of every width."""


def corrupt(data: bytes, generator: random.Random) -> bytes:
    """A copy of ``data`` with one to four defects: flipped bits, absurd numbers, moved, doubled or cleared bytes."""
    damaged = bytearray(data)
    headers = min(len(data), 1024)
    for _ in range(generator.randint(1, 4)):
        # Half of the defects hit the first or last bytes: that is where formats keep their tables.
        place = generator.choice(
            (generator.randrange(headers), len(data) - 1 - generator.randrange(headers), generator.randrange(len(data)))
        )
        place = min(place, len(damaged) - 1)  # the copy may have become shorter
        kind = generator.randrange(5)
        if kind == 0:
            damaged[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            width = generator.choice((2, 4, 8))
            place -= place % width
            value = generator.choice(ABSURD) + generator.choice((-1, 0, 0, 1))
            damaged[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 2:
            damaged[place : place + 16] = generator.randbytes(16)
        elif kind == 3:
            source = generator.randrange(len(data))
            damaged[place : place + 64] = data[source : source + 64]
        else:
            size = generator.randrange(1, 256)
            damaged[place : place + size] = bytes(size)
    del damaged[max(1, len(data)) :]
    return bytes(damaged)


def truncations(size: int, samples: int = 500) -> list[int]:
    """Lengths below ``size``: all of them, or the first and last hundred and evenly spread ones."""
    if size <= samples:
        return list(range(size))
    edges = [*range(100), *range(size - 100, size)]
    return sorted({*edges, *range(0, size, max(1, size // (samples - len(edges))))})


def image_bytes(binary: Binary, address: int, size: int) -> bytes:
    """What guest memory holds at ``address`` once the segments are there; zero where no segment is."""
    result = bytearray(size)
    for segment in binary.segments:
        start, stop = max(address, segment.address), min(address + size, segment.address + segment.data.nbytes)
        if start < stop:
            result[start - address : stop - address] = segment.data[start - segment.address : stop - segment.address]
    return bytes(result)


def check_invariants(binary: Binary) -> None:
    """What holds of every Binary, whatever file it is made of."""
    assert binary.format
    assert binary.isa
    assert binary.segments
    end = 0
    for segment in sorted(binary.segments, key=lambda s: s.address):
        assert segment.data.format == "B"
        assert segment.data.contiguous
        assert segment.data.nbytes <= segment.memory_size
        assert segment.address >= end, "segments overlap"
        end = segment.address + segment.memory_size
        assert end <= 1 << 64
        if segment.mappable:
            assert buffer_address(segment.data) % mmap.PAGESIZE == segment.address % mmap.PAGESIZE
        for place in (0, segment.data.nbytes // 2, segment.data.nbytes - 1):
            assert not segment.data or segment.data[place] >= 0
    assert binary.entry is None or 0 <= binary.entry < 1 << 64


def use_symbols(binary: Binary, names: Iterable[str]) -> None:
    """Call everything that a symbol table offers; results are only checked against each other."""
    symbols = binary.symbols
    count = len(symbols)
    assert sum(1 for _ in islice(iter(symbols), 1000)) == min(count, 1000)
    for name in names:
        found = symbols.find(name)
        assert found is None or found.name == name
        symbols.similar(name)
    for symbol in islice(iter(symbols), 50):
        assert isinstance(symbol.name, str)
        assert 0 <= symbol.address < 1 << 64
        symbols.find(symbol.name)
    for segment in binary.segments[:50]:
        for address in (segment.address, segment.address + segment.memory_size - 1, (1 << 64) - 1):
            near = symbols.nearest(address)
            assert near is None or near.address <= address


def _peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


class LoaderConformance:
    """The contract of ``rift_load_binary``: see the module's text."""

    time_limit: ClassVar[float] = 10.0
    """Seconds for one file; a loader should need a tenth of it. Only a hang exceeds it."""

    memory_limit: ClassVar[int] = 256 << 20
    """Bytes by which the process may grow over all damaged files, beside four times the file's size."""

    isa: ClassVar[str] = "auto"
    """The ISA that is asked for, where a file holds several."""

    own_formats: ClassVar[frozenset[str]] = frozenset()
    """Keys of :data:`FOREIGN` that are the loader's as well, although the good file is of another kind."""

    corruptions: ClassVar[int] = 500
    """How many damaged files are tried."""

    @pytest.fixture
    def config(self, plugin: Any) -> Section:
        """The loader's settings: the defaults, unless a subclass says otherwise."""
        return self.info(plugin).config()

    @pytest.fixture
    def load(self, plugin: Any, config: Section) -> Load:
        """Calls the hook as the machine does."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin)

        def call(path: Path) -> Binary | None:
            start = time.monotonic()
            try:
                return cast("Binary | None", manager.hook.rift_load_binary(path=path, config=config, isa=self.isa))
            finally:
                assert time.monotonic() - start < self.time_limit, f"{path} took too long"

        return call

    @pytest.fixture
    def good_path(self, good_file: GoodFile, tmp_path: Path) -> Path:
        """The good file on disk."""
        path = tmp_path / "good"
        path.write_bytes(good_file.data)
        return path

    @pytest.fixture
    def binary(self, load: Load, good_path: Path) -> Binary:
        """The good file, loaded."""
        result = load(good_path)
        assert isinstance(result, Binary)
        return result

    @staticmethod
    def info(plugin: Any) -> PluginInfo:
        """The plugin's card for its loader."""
        declared = plugin.rift_plugin()
        cards = [declared] if isinstance(declared, PluginInfo) else list(declared)
        return next(card for card in cards if card.kind == "loader")

    def test_declares_a_loader(self, plugin: Any) -> None:
        info = self.info(plugin)
        assert info.name
        assert info.summary
        assert isinstance(info.config(), Section)

    def test_good_file(self, binary: Binary, good_file: GoodFile, good_path: Path) -> None:
        assert binary.path == good_path
        assert binary.isa == good_file.isa
        assert binary.entry == good_file.entry
        check_invariants(binary)
        for address, expected in good_file.memory.items():
            assert image_bytes(binary, address, len(expected)) == expected, f"at {address:#x}"
        for address, permissions in good_file.permissions.items():
            found = [s for s in binary.segments if s.address <= address < s.address + s.memory_size]
            assert [s.permissions & ~Permission.USER for s in found] == [permissions], f"at {address:#x}"

    def test_symbols(self, binary: Binary, good_file: GoodFile) -> None:
        use_symbols(binary, good_file.symbols)
        listed = {symbol.name for symbol in binary.symbols}
        assert len(list(binary.symbols)) == len(binary.symbols)
        for name, address in good_file.symbols.items():
            symbol = binary.symbols.find(name)
            assert symbol is not None, name
            assert symbol.address == address, name
            assert name in listed
            assert name in binary.symbols.similar(name)
        assert binary.symbols.find("no such symbol: \N{SNOWMAN}") is None
        assert binary.symbols.find("") is None
        assert binary.symbols.find("nul\0inside") is None

    def test_nearest_symbol(self, binary: Binary, good_file: GoodFile) -> None:
        for name in good_file.symbols:
            symbol = binary.symbols.find(name)
            assert symbol is not None
            if not any(s.address <= symbol.address < s.address + s.memory_size for s in binary.segments):
                continue
            for address in {symbol.address, symbol.address + max(symbol.size, 1) - 1}:
                near = binary.symbols.nearest(address)
                assert near is not None, name
                assert near.address <= address

    def test_writing_to_segments_does_not_change_the_file(
        self, load: Load, good_file: GoodFile, good_path: Path
    ) -> None:
        binary = load(good_path)
        assert binary is not None
        for segment in binary.segments:
            if not segment.data.readonly:
                segment.data[:] = b"\xa5" * segment.data.nbytes
        assert good_path.read_bytes() == good_file.data
        again = load(good_path)
        assert again is not None
        for address, expected in good_file.memory.items():
            assert image_bytes(again, address, len(expected)) == expected

    def test_binary_outlives_its_file(self, load: Load, good_file: GoodFile, good_path: Path) -> None:
        binary = load(good_path)
        good_path.unlink()
        gc.collect()
        assert binary is not None
        for address, expected in good_file.memory.items():
            assert image_bytes(binary, address, len(expected)) == expected
        use_symbols(binary, good_file.symbols)

    def test_segments_outlive_the_binary(self, load: Load, good_file: GoodFile, good_path: Path) -> None:
        binary = load(good_path)
        assert binary is not None
        segments, expected = binary.segments, [bytes(s.data) for s in binary.segments]
        del binary
        gc.collect()
        assert [bytes(s.data) for s in segments] == expected

    def test_foreign_files_are_left_to_others(self, load: Load, good_file: GoodFile, tmp_path: Path) -> None:
        magic = good_file.data[: good_file.magic_size]
        for kind, data in FOREIGN.items():
            if data.startswith(magic) or kind in self.own_formats:
                continue  # this loader's own format
            path = tmp_path / "foreign"
            path.write_bytes(data)
            assert load(path) is None, kind

    def test_what_is_no_file_is_an_error(self, load: Load, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        for path in (tmp_path / "missing", tmp_path, fifo, Path("/dev/zero")):
            with pytest.raises(BinaryError) as caught:
                load(path)
            assert str(path) in str(caught.value)

    def test_empty_file_is_an_error_or_foreign(self, load: Load, tmp_path: Path) -> None:
        path = tmp_path / "empty"
        path.touch()
        assert self.outcome(load, path) in ("error", "foreign")

    @staticmethod
    def outcome(load: Load, path: Path, names: Iterable[str] = ()) -> str:
        """Load a file that may be damaged, use what comes of it, and say what that was."""
        message = None
        try:
            binary = load(path)
        except BinaryError as error:
            message = str(error)
        if message is not None:
            assert str(path) in message
            return "error"
        if binary is None:
            return "foreign"
        check_invariants(binary)
        use_symbols(binary, names)
        return "binary"

    def _outcomes(
        self, load: Load, good_file: GoodFile, tmp_path: Path, files: Iterable[bytes]
    ) -> Iterator[tuple[int, str]]:
        path = tmp_path / "damaged"
        names = [*good_file.symbols, "main"]
        before = _peak_memory()
        for number, data in enumerate(files):
            path.unlink(missing_ok=True)  # a new file each time: the one before may still be mapped
            path.write_bytes(data)
            start = time.monotonic()
            kind = self.outcome(load, path, names)
            assert time.monotonic() - start < 2 * self.time_limit, f"file {number}: using it took too long"
            if data[: good_file.magic_size] == good_file.data[: good_file.magic_size]:
                assert kind != "foreign", f"file {number} has the right magic and is refused as foreign"
            yield number, kind
        grown = _peak_memory() - before
        assert grown < self.memory_limit + 4 * len(good_file.data), f"the process grew by {grown} bytes"

    def test_truncated_files(self, load: Load, good_file: GoodFile, tmp_path: Path) -> None:
        lengths = truncations(len(good_file.data))
        kinds = dict(self._outcomes(load, good_file, tmp_path, (good_file.data[:length] for length in lengths)))
        assert "error" in kinds.values()

    def test_corrupted_files(self, load: Load, good_file: GoodFile, tmp_path: Path) -> None:
        generator = random.Random(20250)
        files = (corrupt(good_file.data, generator) for _ in range(self.corruptions))
        kinds = dict(self._outcomes(load, good_file, tmp_path, files))
        assert len(kinds) == self.corruptions
        assert "error" in kinds.values()

    def test_nothing_is_left_open(self, load: Load, good_file: GoodFile, tmp_path: Path) -> None:
        path = tmp_path / "file"
        generator = random.Random(7)
        before, threads = 0, 0
        for turn in range(60):
            if turn == 10:  # the first turns load modules and fill caches
                gc.collect()
                before, threads = _descriptors(), threading.active_count()
            path.unlink(missing_ok=True)
            path.write_bytes(good_file.data if turn % 2 else corrupt(good_file.data, generator))
            self.outcome(load, path, good_file.symbols)
        gc.collect()
        assert _descriptors() == before
        assert threading.active_count() == threads

    def test_no_mapping_is_left(self, load: Load, good_path: Path) -> None:
        """Nor a descriptor: of a file that is mapped, both are held exactly as long as its segments are."""
        if not _MAPS.exists():
            skip_here("mappings are counted in /proc")

        def count() -> tuple[int, int]:
            gc.collect()
            return _descriptors(), sum(str(good_path) in line for line in _MAPS.read_text().splitlines())

        load(good_path)
        before = count()
        for _ in range(50):
            load(good_path)
        assert count() == before
        binary = load(good_path)
        assert binary is not None
        segments = binary.segments
        mapped = any(segment.mappable for segment in segments)
        del binary
        held = count()
        assert held in (before, (before[0] + 1, before[1] + 1))
        assert held != before or not mapped
        del segments
        assert count() == before

    def test_a_file_larger_than_any_memory(self, load: Load, good_file: GoodFile, good_path: Path) -> None:
        try:
            os.truncate(good_path, 1 << 43)
        except OSError as error:
            skip_here(f"no sparse file of 8 TiB here: {error}")
        # A mapping of that size may or may not be had.
        with contextlib.suppress(BinaryError):
            binary = load(good_path)
            assert binary is not None
            assert binary.entry == good_file.entry
