"""Symbol look-up: by name in both spellings, by address, by likeness; a million of them."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING

import macho_writer as w
import pytest

from rift_core.binary import Binary, NoSymbols, Symbol
from rift_core.errors import BinaryError
from rift_core.memory import Gva
from rift_loader_macho import MachoConfig, rift_load_binary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Open = Callable[..., Binary]

LOCAL, GLOBAL = w.N_SECT, w.N_SECT | w.N_EXT


def address(binary: Binary, name: str) -> int | None:
    symbol = binary.symbols.find(name)
    return None if symbol is None else symbol.address


def near(binary: Binary, place: int) -> str | None:
    symbol = binary.symbols.nearest(place)
    return None if symbol is None else symbol.name


def test_listing(opened: Open) -> None:
    """As C names them; sizes reach to the next symbol or the section's end."""
    symbols = opened(w.good()).symbols
    assert list(symbols) == [
        Symbol("helper", Gva(w.TEXT), 16),
        Symbol("_start", Gva(w.TEXT + 16), 48),
        Symbol("test", Gva(w.TEXT + 64), 64),
        Symbol("bare", Gva(w.TEXT + 128), 128),
        Symbol("counter", Gva(w.DATA), 40),
        Symbol("buffer", Gva(w.DATA + 0x1000), 0x1000),
        Symbol("size", Gva(0x1234), 0),
    ]
    assert len(symbols) == 7


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("main", 1),  # C's main
        ("_main", 2),  # C's _main, which the file spells __main, before the file's spelling of main
        ("__main", 2),  # the file's spelling
        ("plain", 3),  # assembler without underscore
        ("_only", 4),  # the file's spelling of only
        ("only", 4),
        ("_plain", None),
        ("_", 5),
        ("__", None),
    ],
)
def test_both_spellings(opened: Open, asked: str, found: int | None) -> None:
    names = ["_main", "__main", "plain", "_only", "_"]
    binary = opened(w.good(symbols=[w.Sym(name, w.TEXT + n) for n, name in enumerate(names, 1)]))
    symbol = binary.symbols.find(asked)
    assert (symbol and symbol.address - w.TEXT) == found
    assert symbol is None or symbol.name == asked
    assert [s.name for s in binary.symbols] == ["main", "_main", "plain", "only", "_"]


def test_c_names_come_first(opened: Open) -> None:
    symbols = [w.Sym("x", w.TEXT), w.Sym("_x", w.TEXT + 1, LOCAL)]
    assert address(opened(w.good(symbols=symbols)), "x") == w.TEXT + 1
    assert address(opened(w.good(symbols=symbols[:1])), "x") == w.TEXT


def test_what_is_not_listed(opened: Open) -> None:
    hidden = [
        w.Sym("_stab", w.TEXT, 0x24, 1),
        w.Sym("_undefined", w.TEXT, w.N_UNDF | w.N_EXT, 0),
        w.Sym("_indirect", w.TEXT, 0xA | w.N_EXT, 0),
        w.Sym("_nowhere", w.TEXT, GLOBAL, 0),
        w.Sym("_far", w.TEXT, GLOBAL, 5),
        w.Sym("", w.TEXT),
    ]
    assert list(opened(w.good(symbols=hidden)).symbols) == []
    macho = w.good(symbols=[w.Sym("_tls", w.DATA, section=3)])
    macho.segments[3].sections[0].kind = w.THREAD_VARIABLES
    assert list(opened(macho).symbols) == []


@pytest.mark.parametrize("turned", [False, True])
def test_global_before_hidden_and_weak_before_static(opened: Open, turned: bool) -> None:
    symbols = [w.Sym("_x", w.TEXT + 1, LOCAL), w.Sym("_x", w.TEXT + 2, description=w.WEAK_DEFINITION)]
    symbols += [w.Sym("_x", w.TEXT + 3), w.Sym("_y", w.TEXT + 4, LOCAL), w.Sym("_y", w.TEXT + 5, w.N_PEXT | LOCAL)]
    binary = opened(w.good(symbols=symbols[::-1] if turned else symbols))
    assert (address(binary, "x"), address(binary, "y")) == (w.TEXT + 3, w.TEXT + 5)


def test_first_of_equals(opened: Open) -> None:
    assert address(opened(w.good(symbols=[w.Sym("_x", w.TEXT + 2), w.Sym("_x", w.TEXT + 1)])), "x") == w.TEXT + 2


@pytest.mark.parametrize("name", ["", "_", "none", "tes", "testt", "nul\0inside", "\N{SNOWMAN}", "\udcff"])
def test_nothing_of_that_name(opened: Open, name: str) -> None:
    assert opened(w.good()).symbols.find(name) is None


def test_slide_counts_but_not_for_absolute_ones(opened: Open) -> None:
    macho = w.movable(symbols=[w.Sym("_s", 0x1004), w.Sym("_a", 5, w.N_ABS | w.N_EXT, 0)])
    binary = opened(macho, base="0xffffffff80000000")
    assert (address(binary, "s"), address(binary, "a")) == (0xFFFFFFFF80001004, 5)
    assert near(binary, 0xFFFFFFFF80001010) == "s"
    found = binary.symbols.find("s")
    assert found is not None
    assert found.size == 60


def test_overlong_name_is_cut_but_found(opened: Open) -> None:
    name = "z" * 100_000
    binary = opened(w.good(symbols=[w.Sym("_" + name, w.TEXT)]))
    assert address(binary, name) == w.TEXT
    assert [s.name for s in binary.symbols] == [name[:65536]]


def test_names_that_are_no_text(opened: Open) -> None:
    binary = opened(w.good(symbols=[w.Sym(b"_\xff\xfe", w.TEXT), w.Sym("_größe", w.TEXT + 2)]))
    assert [s.name for s in binary.symbols] == ["\\xff\\xfe", "größe"]
    assert address(binary, "größe") == w.TEXT + 2


def test_last_name_without_end(tmp_path: Path) -> None:
    """A string table may end without a NUL: the name then ends with the table."""
    macho = w.good(symbols=[w.Sym("_ab", w.TEXT)])
    data = bytearray(macho.build())
    at = data.rindex(b"_ab\0")
    command = next(n for n in range(0, 2000, 4) if data[n : n + 8] == b"\x02\0\0\0\x18\0\0\0")
    data[command + 20 : command + 24] = (5).to_bytes(4, "little")  # strsize
    data[at + 3] = 0x21
    path = tmp_path / "file"
    path.write_bytes(data)
    binary = rift_load_binary(path, MachoConfig(), "auto")
    assert binary is not None
    assert [s.name for s in binary.symbols] == ["ab"]


class TestNearest:
    @pytest.fixture
    def binary(self, opened: Open) -> Binary:
        return opened(
            w.good(
                symbols=[
                    w.Sym("_first", w.TEXT + 16),
                    w.Sym("_local", w.TEXT + 32, LOCAL),
                    w.Sym("_twin_local", w.TEXT + 48, LOCAL),
                    w.Sym("_twin", w.TEXT + 48),
                    w.Sym("_header", w.RODATA - 0x100, GLOBAL, 2),
                    w.Sym("_absolute", w.TEXT + 64, w.N_ABS | w.N_EXT, 0),
                    w.Sym("_counter", w.DATA, section=3),
                ]
            )
        )

    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (w.TEXT - 1, None),
            (w.TEXT, None),
            (w.TEXT + 16, "first"),
            (w.TEXT + 31, "first"),
            (w.TEXT + 32, "local"),
            (w.TEXT + 48, "twin"),
            (w.TEXT + 64, "twin"),
            (w.TEXT + 255, "twin"),
            (w.TEXT + 256, None),
            (w.RODATA, None),
            (w.DATA + 39, "counter"),
            (w.DATA + 0x2000, "counter"),
            (w.DATA + 0x3000, None),
            (w.MASK, None),
            (1 << 70, None),
            (-1, None),
        ],
    )
    def test_place(self, binary: Binary, place: int, name: str | None) -> None:
        assert near(binary, place) == name


def test_similar(opened: Open) -> None:
    names = ["_main", "_interrupt_table", "_used_memory", "_Test", "_test_main", "_tset", "start", "_zzz", "_main"]
    binary = opened(w.good(symbols=[w.Sym(name, w.TEXT + number) for number, name in enumerate(names)]))
    assert binary.symbols.similar("mian")[0] == "main"
    assert binary.symbols.similar("interupt_table")[0] == "interrupt_table"
    assert binary.symbols.similar("_start")[0] == "start"
    assert binary.symbols.similar("test") == ["Test", "tset", "test_main"]
    assert binary.symbols.similar("main", 10**30) == ["main", "test_main"]
    assert binary.symbols.similar("test", -1) == []


def test_no_symbols(opened: Open) -> None:
    assert isinstance(opened(w.good(symbols=[])).symbols, NoSymbols)


def test_too_many_symbols(tmp_path: Path) -> None:
    macho = w.good(symbols=[w.Sym("_x", w.TEXT)])
    data = bytearray(macho.build())
    command = next(n for n in range(0, 2000, 4) if data[n : n + 8] == b"\x02\0\0\0\x18\0\0\0")
    data[command + 12 : command + 16] = (16_777_217).to_bytes(4, "little")
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(1 << 29)
    with pytest.raises(BinaryError, match="nsyms: more than 16777216 symbols"):
        rift_load_binary(path, MachoConfig(), "auto")


def test_a_million_symbols(tmp_path: Path) -> None:
    count = 1_000_000
    path = tmp_path / "million"
    # Not in the order of their addresses, as linkers write them: by name, locals first.
    macho = w.good(symbols=[w.Sym(f"_ZN4some6module8function{n}Ev", w.TEXT + n * 7 % count) for n in range(count)])
    macho.segments[1] = w.Seg("__TEXT", w.TEXT, memory_size=count, protection=w.R | w.X)
    macho.segments[1].sections = [w.Sect(w.TEXT, count, kind=w.ZEROFILL)]
    path.write_bytes(macho.build())
    wanted = [(n, f"ZN4some6module8function{n}Ev") for n in range(0, count, count // 100)]
    del macho
    gc.collect()
    start = time.perf_counter()
    binary = rift_load_binary(path, MachoConfig(), "auto")
    assert binary is not None
    found = [binary.symbols.find(name) for _, name in wanted]
    elapsed = time.perf_counter() - start
    assert [(s.address, s.size) for s in found if s is not None] == [(w.TEXT + n * 7 % count, 1) for n, _ in wanted]
    assert near(binary, w.TEXT + 777_777 * 7 % count) == "ZN4some6module8function777777Ev"
    assert len(binary.symbols) == count
    assert binary.symbols.similar("ZN4some6module8function77777777Ev")
    assert elapsed < 10, "the limit is one second; this only catches something else than an index"


def test_many_symbols_with_one_endless_name(tmp_path: Path) -> None:
    """Hostile: hashing and comparing whole names would take hours."""
    count = 200_000
    data = bytearray(w.good(symbols=[w.Sym(b"_" + b"a" * 60_000, w.TEXT)] * 2).build())
    command = next(n for n in range(0, 2000, 4) if data[n : n + 8] == b"\x02\0\0\0\x18\0\0\0")
    names = b"\0_" + b"a" * 60_000 + b"\0"
    at = len(data)
    for number in range(count):
        data += w.symbol_bytes(w.Sym("", w.TEXT + number % 256), 1 + number % 50)
    for offset, value in ((8, at), (12, count), (16, len(data)), (20, len(names))):
        data[command + offset : command + offset + 4] = value.to_bytes(4, "little")
    data += names
    path = tmp_path / "file"
    path.write_bytes(data)
    binary = rift_load_binary(path, MachoConfig(), "auto")
    assert binary is not None
    start = time.monotonic()
    assert binary.symbols.find("a" * 59_000) is None
    assert len(binary.symbols) == count
    assert binary.symbols.nearest(w.TEXT + 300) is None
    assert binary.symbols.similar("aaaa")
    assert time.monotonic() - start < 10


def test_look_up_from_several_threads(opened: Open) -> None:
    binary = opened(w.good(symbols=[w.Sym(f"_f{n}", w.TEXT + n % 256) for n in range(20_000)]))
    wrong: list[int] = []

    def work(first: int) -> None:
        for n in range(first, 20_000, 101):
            symbol = binary.symbols.find(f"f{n}")
            if symbol is None or symbol.address != w.TEXT + n % 256 or binary.symbols.nearest(symbol.address) is None:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
