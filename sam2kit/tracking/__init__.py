"""Track whole videos in memory that does not grow with their length."""
