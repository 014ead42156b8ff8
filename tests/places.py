"""Where a test can run: each backend that is installed, with each ISA that it has a binding for."""

from __future__ import annotations

from rift_core.catalog import Catalog
from rift_core.testing.tools import require_backend, session

ISAS = ("x86_64", "aarch64")


def places(*isas: str) -> list[tuple[str, str]]:
    """Backend and ISA of each binding that is installed, without the fake, which knows few instructions."""
    catalog = Catalog.installed()
    names = sorted(entry.info.name for entry in catalog.of_kind("backend") if entry.info.name != "fake")
    return [(name, isa) for name in names for isa in isas or ISAS if catalog.has("binding", f"{name}/{isa}")]


def require_place(backend: str, isa: str) -> None:
    """Skip the test where the backend does not work, or does not run that ISA on this host's CPU."""
    if isa not in require_backend(backend).isas:
        session().skip(f"backend {backend} runs no {isa} code here")
