"""The commands of ``rift``, a module each, imported when the command is called."""
