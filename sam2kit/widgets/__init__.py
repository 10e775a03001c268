"""Correct prompts and browse clips in JupyterLab."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "annotator": ["Annotator", "PromptDebugger"],
        "clip_browser": ["ClipBrowser"],
    },
)
