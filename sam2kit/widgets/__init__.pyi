from .annotator import Annotator as Annotator
from .annotator import PromptDebugger as PromptDebugger
from .clip_browser import ClipBrowser as ClipBrowser
