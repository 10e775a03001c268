"""Score trackers on whole videos: metrics, statistics, reports."""
