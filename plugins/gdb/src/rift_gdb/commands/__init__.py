"""Commands and options that this plugin adds to ``rift``."""
