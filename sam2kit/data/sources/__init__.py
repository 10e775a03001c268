"""Sources of videos: one module per layout or file format."""
