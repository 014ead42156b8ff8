"""``rift doctor``: what works here, and what to do about the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from rift_core.backend import PLATFORM, Check

if TYPE_CHECKING:
    from rift_core.catalog import Catalog

_STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "n/a": "dim"}


def backend_checks(catalog: Catalog) -> tuple[list[Check], bool]:
    """Every backend's own checks; whether one of them can run guests."""
    checks: list[Check] = []
    usable = False
    for entry in catalog.of_kind("backend"):
        name = entry.info.name
        probe = entry.probe() if name != "fake" else None
        if probe is None:  # works everywhere, and helps nobody who wants to run a guest
            continue
        usable = usable or probe.available
        if any(c.name == PLATFORM and c.status == "fail" for c in probe.checks):
            checks.append(Check(f"backend {name}", "n/a", probe.reason))
            continue
        status = "pass" if probe.available else "fail"
        checks.append(Check(f"backend {name}", status, probe.reason, probe.remedy))
        checks += [
            Check(f"{name}: {c.name}", c.status, c.detail, c.remedy) for c in probe.checks if c.detail != probe.reason
        ]
    if not checks:
        checks.append(Check("backends", "fail", "none is installed", "pip install riftvm-kvm (Linux)"))
    return checks, usable


def tool_checks() -> list[Check]:
    """Compilers, debugger, disassembler: nice to have."""
    checks = []
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    checks.append(
        Check("compiler", "pass", ", ".join(f"{name} {_version(name)}" for name in compilers))
        if compilers
        else Check(
            "compiler", "warn", "neither gcc nor clang: `rift build` cannot work", "install the package gcc or clang"
        )
    )
    gdb = shutil.which("gdb")
    checks.append(
        Check("debugger", "pass", f"gdb {_version('gdb')}")
        if gdb
        else Check("debugger", "warn", "no gdb", "install the package gdb, to debug guests")
    )
    checks.append(
        Check("disassembler", "pass", "capstone")
        if find_spec("capstone")
        else Check(
            "disassembler", "warn", "capstone is missing: reports show bytes", 'pip install "riftvm-core[disassembly]"'
        )
    )
    return checks


def _version(program: str) -> str:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    words = answer.stdout.splitlines()[0].split() if answer.stdout else [""]
    return next((w for w in reversed(words) if w[:1].isdigit()), "")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> int:
    """Check backends and tools. Status 0 if some backend can run guests here, else 1."""
    from rift_core.catalog import Catalog

    catalog = Catalog.installed()
    checks, usable = backend_checks(catalog)
    checks += [
        Check(f"plugin {b.name}", "fail", str(b.error), f"repair or uninstall {b.distribution}") for b in catalog.broken
    ]
    checks += tool_checks()
    if as_json:
        click.echo(json.dumps({"usable": usable, "checks": [asdict(check) for check in checks]}, indent=2))
        return 0 if usable else 1
    from rich.markup import escape

    from rift_core.commands import table

    rows = table.columns("", "check", "finding")
    for check in checks:
        finding = escape(check.detail)
        if check.remedy and check.status != "pass":
            finding += f"\n-> {escape(check.remedy)}"
        rows.add_row(f"[{_STYLES.get(check.status, '')}]{check.status}[/]", escape(check.name), finding)
    table.show(rows)
    click.echo("\nguests can run here" if usable else "\nno backend can run guests here: see the remedies above")
    return 0 if usable else 1
