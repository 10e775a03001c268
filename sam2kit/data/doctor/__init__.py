"""Examine a data set and report its problems."""
