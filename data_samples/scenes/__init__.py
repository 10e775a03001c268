"""Rendered scenes with exact masks: animals, people, machines and toys in generated surroundings.

``make_samples.py`` and ``render_training_set.py`` use this package. Its dependencies are in the
extra ``render``; sam2kit does not import it.
"""
