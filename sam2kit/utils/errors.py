"""The exceptions that sam2kit raises for input it cannot use.

Every message names the file or the configuration key, says what is wrong with it and what to do.
The command line prints the message and exits with code 2; nothing else in the library exits.
"""


class SAM2KitError(Exception):
    """Base class of the errors below."""


class ConfigError(SAM2KitError):
    """A configuration key, value or combination that cannot be used."""


class DataError(SAM2KitError):
    """A video, mask or annotation file that is missing, unreadable or inconsistent."""


class CheckpointError(SAM2KitError):
    """A checkpoint that is missing, unsafe, truncated or made for another model."""


class TrainingError(SAM2KitError):
    """A training that cannot go on: a process failed, or a loss or gradient is not finite."""


class PipelineError(SAM2KitError):
    """A staged notebook that failed or was called with parameters it does not have."""
