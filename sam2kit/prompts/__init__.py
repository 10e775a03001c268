"""Prompts: the data structure, its generators, and prompt files."""
