"""The target description, from the ISA's register table.

GDB manual, appendix "Target Descriptions". LLDB reads the same with attributes that GDB ignores: ``altname``,
``generic``. The operating system is never Linux: GDB would expect its system calls, LLDB its dynamic loader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from rift_core.isa import Isa
    from rift_gdb.registers import Layout, Row

_TYPES = {"code_ptr": "code_ptr", "data_ptr": "data_ptr", "x87": "i387_ext"}
_FLOATS = {32: "ieee_single", 64: "ieee_double"}


class _Vectors(NamedTuple):
    """How an architecture's users write lanes: vectors, unions of them, and the union that a register is."""

    lanes: tuple[tuple[str, str, int], ...]
    unions: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def type(self) -> str:
        """The last union's name."""
        return self.unions[-1][0]

    def lines(self) -> list[str]:
        """As XML."""
        lines = [f'<vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count in self.lanes]
        for union, fields in self.unions:
            lines.append(f'<union id="{union}">')
            lines += [f'<field name="{name}" type="{kind}"/>' for name, kind in fields]
            lines.append("</union>")
        return lines


_X86_VECTORS = _Vectors(
    (("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16), ("v8i16", "int16", 8),
     ("v4i32", "int32", 4), ("v2i64", "int64", 2)),
    (("vec128", (("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"), ("v8_int16", "v8i16"),
                 ("v4_int32", "v4i32"), ("v2_int64", "v2i64"), ("uint128", "uint128"))),),
)  # fmt: skip
"""``$xmm0.v4_float[0]``: GDB's own names, which its XML says again (gdb/features/i386/64bit-sse.xml)."""

_AARCH64_VECTORS = _Vectors(
    (("v2d", "ieee_double", 2), ("v2u", "uint64", 2), ("v2i", "int64", 2),
     ("v4f", "ieee_single", 4), ("v4u", "uint32", 4), ("v4i", "int32", 4),
     ("v8f", "ieee_half", 8), ("v8u", "uint16", 8), ("v8i", "int16", 8),
     ("v16u", "uint8", 16), ("v16i", "int8", 16), ("v1u", "uint128", 1), ("v1i", "int128", 1)),
    (("vnd", (("f", "v2d"), ("u", "v2u"), ("s", "v2i"))), ("vns", (("f", "v4f"), ("u", "v4u"), ("s", "v4i"))),
     ("vnh", (("f", "v8f"), ("u", "v8u"), ("s", "v8i"))), ("vnb", (("u", "v16u"), ("s", "v16i"))),
     ("vnq", (("u", "v1u"), ("s", "v1i"))),
     ("aarch64v", (("d", "vnd"), ("s", "vns"), ("h", "vnh"), ("b", "vnb"), ("q", "vnq")))),
)  # fmt: skip
"""``$v0.d.f[0]`` (gdb/features/aarch64-fpu.xml)."""

_VECTORS = {"aarch64": _AARCH64_VECTORS}  # by GDB's name of the architecture


def target_description(isa: Isa, layout: Layout) -> bytes:
    """``target.xml``."""
    architecture = isa.debug.architecture if isa.debug is not None else ""
    vectors = _VECTORS.get(architecture, _X86_VECTORS)
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        f"<architecture>{architecture}</architecture>",
        "<osabi>none</osabi>",
    ]
    for feature, rows in layout.features.items():
        lines.append(f"<feature name={quoteattr(feature)}>")
        lines += _types(rows, vectors)
        lines += [_register(row, vectors) for row in rows]
        lines.append("</feature>")
    lines.append("</target>")
    return "\n".join(lines).encode() + b"\n"


def _types(rows: list[Row], vectors: _Vectors) -> list[str]:
    lines = vectors.lines() if any(row.view.type == "vector" for row in rows) else []
    for row in rows:
        if row.view.type != "flags":
            continue
        lines.append(f'<flags id="{_flags_type(row)}" size="{row.size}">')
        for field in row.view.fields:
            kind = "" if field.first == field.last else f' type="uint{row.view.bits}"'
            lines.append(f'<field name="{field.name}" start="{field.first}" end="{field.last}"{kind}/>')
        lines.append("</flags>")
    return lines


def _flags_type(row: Row) -> str:
    return f"{row.view.name}_flags"


def _type(row: Row, vectors: _Vectors) -> str:
    view = row.view
    if view.type == "flags":
        return _flags_type(row)
    if view.type == "float":
        return _FLOATS[view.bits]
    if view.type == "vector":
        return vectors.type
    return _TYPES.get(view.type) or (f"uint{view.bits}" if view.bits > 64 else f"int{view.bits}")


def _register(row: Row, vectors: _Vectors) -> str:
    view = row.view
    extra = f' altname="{view.also}"' if view.also else ""
    extra += f' generic="{view.role}"' if view.role else ""
    extra += f' group="{view.group}"'
    extra += ' format="hex"' if view.type == "code_ptr" else ""  # LLDB 16 and later would name the place twice
    extra += ' save-restore="no"' if view.moves else ""  # GDB: around a call of a guest function
    return f'<reg name="{view.name}" bitsize="{view.bits}" type="{_type(row, vectors)}" regnum="{row.number}"{extra}/>'
