"""Run mypy --strict over the sources of every distribution."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Exit status of mypy."""
    sources = [ROOT / "rift_core" / "src", *sorted(ROOT.glob("plugins/*/src")), ROOT / "tools", ROOT / "tests" / "lab"]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    return subprocess.run([*command, *map(str, sources)], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
