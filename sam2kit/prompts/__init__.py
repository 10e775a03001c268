"""Define, generate, save and load prompts."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "corrections": ["CorrectionGenerator", "Corrections"],
        "generator": ["PromptGenerator"],
        "geometry": ["box_to_points", "mask_center", "mask_to_box"],
        "io": ["load_prompts", "load_video_prompts", "save_prompts"],
        "noise": ["PromptNoise"],
        "preview": ["prompt_sheet"],
        "prompt": ["Prompt", "group_prompts"],
    },
)
