"""``python -m rift_core``: the command line, where the script ``rift`` is not on the path."""

from rift_core.cli import main

main()
