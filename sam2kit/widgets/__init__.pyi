from sam2kit.widgets.annotator import Annotator as Annotator
from sam2kit.widgets.annotator import PromptDebugger as PromptDebugger
from sam2kit.widgets.clip_browser import ClipBrowser as ClipBrowser
