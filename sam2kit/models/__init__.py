"""SAM 2 as a module that tracks clips; checkpoints, adapters and the feature cache."""
