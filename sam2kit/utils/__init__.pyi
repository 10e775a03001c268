from sam2kit.utils.errors import CheckpointError as CheckpointError
from sam2kit.utils.errors import ConfigError as ConfigError
from sam2kit.utils.errors import DataError as DataError
from sam2kit.utils.errors import PipelineError as PipelineError
from sam2kit.utils.errors import SAM2KitError as SAM2KitError
from sam2kit.utils.errors import TrainingError as TrainingError
from sam2kit.utils.paths import new_run_dir as new_run_dir
from sam2kit.utils.paths import open_run_dir as open_run_dir
