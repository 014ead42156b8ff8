"""Subcommands of ``rift``."""
