"""Writes artifacts: layout of the data file, its content, the folder, the manifest."""
