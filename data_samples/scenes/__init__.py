"""Rendered scenes with exact masks: animals, people, machines and toys in generated surroundings.

``make_samples.py`` and ``render_training_set.py`` beside this folder use it. Its packages are in
the extra ``render``; nothing of sam2kit imports it.
"""
