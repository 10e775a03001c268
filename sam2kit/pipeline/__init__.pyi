from sam2kit.pipeline.runner import PipelineResult as PipelineResult
from sam2kit.pipeline.runner import run_stages as run_stages
from sam2kit.pipeline.status import read_status as read_status
from sam2kit.pipeline.sweep import Trial as Trial
from sam2kit.pipeline.sweep import run_sweep as run_sweep
