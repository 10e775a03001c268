from .notebook import start_notebook as start_notebook
from .runner import PipelineResult as PipelineResult
from .runner import run_stages as run_stages
from .status import read_status as read_status
from .sweep import Trial as Trial
from .sweep import run_sweep as run_sweep
