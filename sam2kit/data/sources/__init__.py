"""Read videos and their masks: one module for each layout or file format."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["DerivedSource", "ObjectId", "SelectedVideos", "VideoSource"],
        "coco": ["COCODataset"],
        "components": ["ConnectedObjects"],
        "frame_folders": ["VideoDataset"],
        "images": ["ImageDataset"],
        "mixture": ["MixtureDataset"],
        "sav": ["SAVDataset"],
        "video_decoder": ["open_video"],
        "video_files": ["VideoFileDataset"],
    },
)
