"""Track whole videos with memory that does not grow with their length."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "options": ["TrackerOptions"],
        "tracking_job": ["track_video"],
        "video_tracker": ["FrameTracks", "TrackingSession", "VideoTracker"],
    },
)
