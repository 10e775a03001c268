"""Fine-tuning: losses, the Lightning module, checkpoints that resume, launchers."""
