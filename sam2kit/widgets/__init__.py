"""Widgets for JupyterLab, on anywidget: a Python class, an ES module and a style sheet each."""
