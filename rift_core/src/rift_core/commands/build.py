"""``rift build``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The payload; default: the first source's stem.")
@click.option("--isa", help="Instruction set; default: this host's.")
@click.option("--compiler", metavar="NAME", help="gcc, clang, zig, or a path; default: RIFT_CC, else what is there.")
@click.option("--simd", is_flag=True, help="Let the compiler use vector and floating-point registers.")
@click.option("--pie", is_flag=True, help="Make a static PIE, to be loaded anywhere.")
@click.option("--format", type=click.Choice(["elf", "macho"]), help="Default: Mach-O on macOS, else ELF.")
@click.option("-O", "optimize", default="2", show_default=True, metavar="LEVEL", help="Optimization level.")
@click.option("--entry", default="main", show_default=True, help="Where a thread starts.")
@click.option("-v", "--verbose", is_flag=True, help="Print the compiler's command line.")
def command(
    sources: tuple[Path, ...],
    output: Path | None,
    isa: str | None,
    compiler: str | None,
    simd: bool,
    pie: bool,
    format: Literal["elf", "macho"] | None,
    optimize: str,
    entry: str,
    verbose: bool,
) -> int:
    """Compile C or assembler SOURCES with the guest runtime."""
    from rift_core.build import build

    result = build(
        list(sources),
        output if output is not None else sources[0].with_suffix(""),
        isa=isa,
        compiler=compiler,
        simd=simd,
        pie=pie,
        format=format,
        optimize=optimize,
        entry=entry,
        verbose=click.echo if verbose else None,
    )
    if result.warnings:
        click.echo(result.warnings.rstrip(), err=True)
    return 0
