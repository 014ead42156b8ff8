"""The payloads' files: the machine's own, and those that the program has put into guest memory beside it.

Debuggers are told where they stand, and may read them, so that they find symbols by themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import quoteattr

from rift_core.errors import ConfigError

if TYPE_CHECKING:
    from rift_core.engine import Engine


class Payload(NamedTuple):
    """A file and where its first segment stands."""

    path: Path
    address: int


class Payloads:
    """All of one machine. Any thread adds, the server's thread reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._added: tuple[Payload, ...] = ()

    @property
    def own(self) -> Path | None:
        """The machine's own file; None: raw code, or the file has gone."""
        path = self._engine.plan.binary.path
        return path.absolute() if path is not None and path.is_file() else None

    @property
    def added(self) -> tuple[Payload, ...]:
        """Those beside it."""
        return self._added

    def add(self, path: str | Path, address: int) -> None:
        """One more.

        :raises ConfigError: there is no such file, or it is no address.
        """
        file = Path(path).absolute()
        if not file.is_file():
            raise ConfigError(f"{path}: there is no such file")
        if not 0 <= address < 1 << 64:
            raise ConfigError(f"{address:#x} is no address")
        self._added = (*(each for each in self._added if each.path != file), Payload(file, address))

    def find(self, name: str) -> Path | None:
        """The file that a client names; None: it is none of these."""
        files = (self.own, *(each.path for each in self._added))
        return next((file for file in files if file is not None and str(file) == name), None)

    def document(self) -> bytes:
        """GDB manual, "Library List Format". One segment's address is enough: the others stand where the file says."""
        lines = ["<library-list>"]
        lines += [
            f'<library name={quoteattr(str(each.path))}><segment address="{each.address:#x}"/></library>'
            for each in self._added
        ]
        return "\n".join([*lines, "</library-list>"]).encode() + b"\n"
