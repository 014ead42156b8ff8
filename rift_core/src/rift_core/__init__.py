"""Rift's core: assemble a machine from plugins and run guest threads in it."""
