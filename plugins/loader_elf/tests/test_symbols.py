"""Symbol look-up: by name, by address, by likeness; a million of them."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING

import elf_writer as w
import pytest

from rift_core.binary import Binary, NoSymbols, Symbol
from rift_core.errors import BinaryError
from rift_core.memory import Gva
from rift_loader_elf import ElfConfig, rift_load_binary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Open = Callable[..., Binary]


def address(binary: Binary, name: str) -> int | None:
    symbol = binary.symbols.find(name)
    return None if symbol is None else symbol.address


def near(binary: Binary, place: int) -> str | None:
    symbol = binary.symbols.nearest(place)
    return None if symbol is None else symbol.name


def test_listing(opened: Open) -> None:
    symbols = opened(w.good()).symbols
    assert list(symbols)[:2] == [Symbol("helper", Gva(0x200000), 16), Symbol("_start", Gva(0x200010), 32)]
    assert [s.name for s in symbols] == ["helper", "_start", "test", "counter", "buffer", "_size"]
    assert len(symbols) == 6


def test_what_is_not_listed(opened: Open) -> None:
    hidden = [
        w.Sym("file", 1, kind=w.FILE, section=w.ABS),
        w.Sym("section", 1, kind=w.SECTION),
        w.Sym("tls", 1, kind=w.TLS),
        w.Sym("undefined", 1, section=w.UNDEF),
        w.Sym("common", 1, section=0xFFF2),
        w.Sym("", 1),
    ]
    assert list(opened(w.good(symbols=hidden)).symbols) == []


def test_mapping_symbols_of_aarch64_are_not_listed(opened: Open) -> None:
    symbols = [w.Sym("$x.1", 0x200000, kind=w.NOTYPE, bind=w.LOCAL), w.Sym("$kept", 0x200000)]
    assert [s.name for s in opened(w.good(symbols=symbols, machine=w.EM_AARCH64)).symbols] == ["$kept"]
    assert len(opened(w.good(symbols=symbols)).symbols) == 2


@pytest.mark.parametrize("turned", [False, True])
def test_global_before_weak_before_local(opened: Open, turned: bool) -> None:
    symbols = [w.Sym("x", 1, bind=w.LOCAL), w.Sym("x", 2, bind=w.WEAK), w.Sym("x", 3), w.Sym("y", 4, bind=w.LOCAL)]
    symbols += [w.Sym("y", 5, bind=w.WEAK)]
    binary = opened(w.good(symbols=symbols[::-1] if turned else symbols))
    assert (address(binary, "x"), address(binary, "y")) == (3, 5)


def test_first_of_equals(opened: Open) -> None:
    symbols = [w.Sym("x", number, bind=w.LOCAL) for number in range(5)]
    assert address(opened(w.good(symbols=symbols)), "x") == 0


def test_names_of_every_length(opened: Open) -> None:
    names = ["n" * length for length in (*range(1, 40), 255, 256, 257, 300, 5000)]
    binary = opened(w.good(symbols=[w.Sym(name, number) for number, name in enumerate(names)]))
    assert [address(binary, name) for name in names] == list(range(len(names)))
    assert address(binary, "n" * 40) is None
    assert address(binary, "n" * 299) is None


def test_overlong_name_is_cut_but_found(opened: Open) -> None:
    name = "z" * 100_000
    binary = opened(w.good(symbols=[w.Sym(name, 7)]))
    assert address(binary, name) == 7
    assert [s.name for s in binary.symbols] == [name[:65536]]


def test_names_that_are_no_text(opened: Open) -> None:
    binary = opened(w.good(symbols=[w.Sym(b"\xff\xfe", 1), w.Sym("größe", 2)]))
    assert [s.name for s in binary.symbols] == ["\\xff\\xfe", "größe"]
    assert address(binary, "größe") == 2
    assert binary.symbols.find("\udcff") is None


class TestNearest:
    @pytest.fixture
    def binary(self, opened: Open) -> Binary:
        return opened(
            w.good(
                symbols=[
                    w.Sym("outer", 0x200000, 0x80),
                    w.Sym("label", 0x200008, 0, w.NOTYPE, w.LOCAL),
                    w.Sym("inner", 0x200010, 8, bind=w.LOCAL),
                    w.Sym("twin_local", 0x200090, 8, bind=w.LOCAL),
                    w.Sym("twin", 0x200090, 8),
                    w.Sym("bare", 0x2000A0, 0, w.NOTYPE),
                    w.Sym("huge", 0x5FFFFF, (1 << 64) - 1, w.OBJECT),
                    w.Sym("absolute", 0x400008, 0, w.NOTYPE, section=w.ABS),
                    w.Sym("counter", 0x600000, 8, w.OBJECT),
                ]
            )
        )

    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (0x1FFFFF, None),
            (0x200000, "outer"),
            (0x200008, "outer"),
            (0x200010, "inner"),
            (0x200018, "outer"),
            (0x20007F, "outer"),
            (0x200080, "inner"),
            (0x200090, "twin"),
            (0x200098, "twin"),
            (0x2000A0, "bare"),
            (0x2000FF, "bare"),
            (0x200100, None),
            (0x400008, None),
            (0x600004, "counter"),
            (0x600010, "huge"),
            (0x602FFF, "huge"),
            (0x603000, None),
            ((1 << 64) - 1, None),
            (1 << 70, None),
            (-1, None),
        ],
    )
    def test_place(self, binary: Binary, place: int, name: str | None) -> None:
        assert near(binary, place) == name

    def test_bias_counts(self, opened: Open) -> None:
        binary = opened(w.good(kind=w.ET_DYN), base=0xFFFFFFFF80000000)
        assert near(binary, 0xFFFFFFFF80000048) == "test"


class TestSimilar:
    @pytest.fixture
    def binary(self, opened: Open) -> Binary:
        names = ["main", "interrupt_table", "used_memory", "Test", "test_main", "tset", "_start", "zzz", "main"]
        return opened(w.good(symbols=[w.Sym(name, number) for number, name in enumerate(names)]))

    @pytest.mark.parametrize(
        ("name", "best"),
        [
            ("mian", "main"),
            ("interupt_table", "interrupt_table"),
            ("used_memroy", "used_memory"),
            ("USED_MEMORY", "used_memory"),
            ("start", "_start"),
            ("memory", "used_memory"),
            ("main", "main"),
        ],
    )
    def test_best(self, binary: Binary, name: str, best: str) -> None:
        assert binary.symbols.similar(name)[0] == best

    def test_each_name_once_and_no_more_than_asked(self, binary: Binary) -> None:
        assert binary.symbols.similar("test") == ["Test", "tset", "test_main"]
        assert binary.symbols.similar("test", 1) == ["Test"]
        assert binary.symbols.similar("test", 0) == []
        assert binary.symbols.similar("test", -1) == []
        assert binary.symbols.similar("") == []
        assert binary.symbols.similar("nothing like it at all") == []
        assert binary.symbols.similar("main", 10**30) == ["main", "test_main"]


def test_stripped_file_uses_dynsym(opened: Open) -> None:
    entries, names = w.symbol_table([w.Sym("exported", 0x200008)])
    elf = w.good(symbols=[])
    elf.sections = [w.Sec(w.SHT_DYNSYM, entries, link=3, entry_size=24), w.Sec(w.SHT_STRTAB, names)]
    assert address(opened(elf), "exported") == 0x200008
    elf.symbols = [w.Sym("better", 1)]
    assert address(opened(elf), "exported") is None


def test_no_symbols(opened: Open) -> None:
    assert isinstance(opened(w.good(symbols=[])).symbols, NoSymbols)


@pytest.mark.parametrize(
    ("symtab", "strtab", "message"),
    [
        (w.Sec(w.SHT_SYMTAB, bytes(48), link=3, entry_size=16), w.Sec(w.SHT_STRTAB, b"\0a\0"), "sh_entsize"),
        (w.Sec(w.SHT_SYMTAB, bytes(48), link=77, entry_size=24), w.Sec(w.SHT_STRTAB, b"\0a\0"), "sh_link"),
        (w.Sec(w.SHT_SYMTAB, bytes(48), link=1, entry_size=24), w.Sec(w.SHT_STRTAB, b"\0a\0"), "no string table"),
        (w.Sec(w.SHT_SYMTAB, bytes(48), link=3, entry_size=24), w.Sec(w.SHT_STRTAB, b"\0a"), "end with a NUL"),
        (w.Sec(w.SHT_SYMTAB, bytes(48), link=3, entry_size=24), w.Sec(w.SHT_STRTAB, b""), "end with a NUL"),
        (w.Sec(w.SHT_SYMTAB, b"", size=1 << 40, link=3, entry_size=24), w.Sec(w.SHT_STRTAB, b"\0"), "sh_size"),
    ],
)
def test_damaged_tables(opened: Open, symtab: w.Sec, strtab: w.Sec, message: str) -> None:
    with pytest.raises(BinaryError, match=message):
        opened(w.good(symbols=[], sections=[symtab, strtab]))


def test_symbols_whose_names_lie_outside_are_not_listed(opened: Open) -> None:
    table = bytes(24) + w.symbol_bytes(w.Sym("", 5), 3) + w.symbol_bytes(w.Sym("", 6), 0xFFFFFFFF)
    table += w.symbol_bytes(w.Sym("", 7), 1)
    elf = w.good(symbols=[])
    elf.sections = [w.Sec(w.SHT_SYMTAB, table, link=3, entry_size=24), w.Sec(w.SHT_STRTAB, b"\0a\0")]
    assert list(opened(elf).symbols) == [Symbol("a", Gva(7), 0)]


def test_a_million_symbols(tmp_path: Path) -> None:
    count = 1_000_000
    path = tmp_path / "million"
    elf = w.good(symbols=[w.Sym(f"_ZN4some6module8function{n}Ev", 0x200000 + n, 1) for n in range(count)])
    elf.segments[0] = w.Seg(0x200000, memory_size=count, flags=w.R | w.X)
    path.write_bytes(elf.build())
    wanted = [(n, f"_ZN4some6module8function{n}Ev") for n in range(0, count, count // 100)]
    del elf
    gc.collect()
    start = time.perf_counter()
    binary = rift_load_binary(path, ElfConfig())
    assert binary is not None
    found = [address(binary, name) for _, name in wanted]
    elapsed = time.perf_counter() - start
    assert found == [0x200000 + n for n, _ in wanted]
    assert near(binary, 0x200000 + 777_777) == "_ZN4some6module8function777777Ev"
    assert len(binary.symbols) == count
    assert binary.symbols.similar("_ZN4some6module8function77777777Ev")
    assert elapsed < 10, "the limit is one second; this only catches something else than an index"


def test_a_million_symbols_with_one_endless_name(opened: Open) -> None:
    """Hostile: every symbol names the same 60,000 bytes, so that hashing and comparing whole names would take hours."""
    count = 200_000
    names = b"\0" + b"a" * 60_000 + b"\0"
    table = bytes(24) + b"".join(w.symbol_bytes(w.Sym("", number), 1 + number % 50) for number in range(count))
    elf = w.good(symbols=[])
    elf.sections = [w.Sec(w.SHT_SYMTAB, table, link=3, entry_size=24), w.Sec(w.SHT_STRTAB, names)]
    binary = opened(elf)
    start = time.monotonic()
    assert binary.symbols.find("a" * 59_000) is None
    assert len(binary.symbols) == count
    assert binary.symbols.nearest(0x200000) is None
    assert binary.symbols.similar("aaaa")
    assert time.monotonic() - start < 10


def test_look_up_from_several_threads(opened: Open) -> None:
    binary = opened(w.good(symbols=[w.Sym(f"f{n}", 0x200000 + n % 256, 1) for n in range(20_000)]))
    wrong: list[int] = []

    def work(first: int) -> None:
        for n in range(first, 20_000, 101):
            symbol = binary.symbols.find(f"f{n}")
            if symbol is None or symbol.address != 0x200000 + n % 256 or binary.symbols.nearest(symbol.address) is None:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
