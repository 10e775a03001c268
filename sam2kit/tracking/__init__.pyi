from .options import TrackerOptions as TrackerOptions
from .tracking_job import track_video as track_video
from .tracking_job import track_videos as track_videos
from .training_set_job import make_training_set as make_training_set
from .video_tracker import FrameTracks as FrameTracks
from .video_tracker import TrackingSession as TrackingSession
from .video_tracker import VideoTracker as VideoTracker
