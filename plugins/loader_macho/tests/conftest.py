"""``macho_writer`` importable (--import-mode=importlib has no test's folder on the path), and what loads its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rift_loader_macho import MachoConfig, rift_load_binary

if TYPE_CHECKING:
    from collections.abc import Callable

    import macho_writer as w

    from rift_core.binary import Binary

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Binary]:
    """Writes a file and loads it."""

    def call(macho: w.Macho | bytes, isa: str = "auto", **config: object) -> Binary:
        path = tmp_path / "file"
        path.write_bytes(macho if isinstance(macho, bytes) else macho.build())
        binary = rift_load_binary(path, MachoConfig.model_validate(config), isa)
        assert binary is not None
        return binary

    return call
