from sam2kit.tracking.options import TrackerOptions as TrackerOptions
from sam2kit.tracking.tracking_job import track_video as track_video
from sam2kit.tracking.video_tracker import FrameTracks as FrameTracks
from sam2kit.tracking.video_tracker import TrackingSession as TrackingSession
from sam2kit.tracking.video_tracker import VideoTracker as VideoTracker
