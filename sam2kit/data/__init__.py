"""Read videos and masks, sample clips from them, and load clips in batches."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "build": [
            "build_datasets",
            "build_source",
            "build_validation",
            "build_validation_source",
            "hold_out",
            "open_source",
            "sets_to_inspect",
        ],
        "clip": ["ClipBatch", "VideoClip", "collate"],
        "clip_dataset": ["ClipDataset"],
        "conversion": ["convert"],
        "doctor": ["Examination", "run_doctor"],
        "loader": ["create_dataloader"],
        "preview": ["clip_sheet"],
        "sources": [
            "COCODataset",
            "ConnectedObjects",
            "DerivedSource",
            "ImageDataset",
            "MixtureDataset",
            "ObjectId",
            "SAVDataset",
            "SelectedVideos",
            "VideoDataset",
            "VideoFileDataset",
            "VideoSource",
            "open_video",
        ],
        "synthetic": ["CompositedDataset", "SyntheticDataset"],
        "writers": ["MaskWriter", "coco_json"],
    },
)
