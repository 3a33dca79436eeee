"""Disk formats, one file each, found by name. See `weights/format.py` for what a file must offer."""
