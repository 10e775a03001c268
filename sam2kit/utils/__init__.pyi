from .errors import CheckpointError as CheckpointError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import PipelineError as PipelineError
from .errors import SAM2KitError as SAM2KitError
from .errors import TrainingError as TrainingError
from .paths import new_run_dir as new_run_dir
from .paths import open_run_dir as open_run_dir
