"""Helpers without a room of their own: errors, files, paths, devices, processes."""
