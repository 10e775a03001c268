"""Overlays, plots, tables, HTML pages and video files. Nothing here knows a model."""
