from .options import TrackerOptions as TrackerOptions
from .tracking_job import track_video as track_video
from .tracking_job import track_videos as track_videos
from .video_tracker import FrameTracks as FrameTracks
from .video_tracker import TrackingSession as TrackingSession
from .video_tracker import VideoTracker as VideoTracker
