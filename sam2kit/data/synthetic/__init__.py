"""Generated videos with exact masks."""
