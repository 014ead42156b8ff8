"""The packets: a module for each subject, and in :mod:`rift_gdb.packets.registry` the table of all."""
