"""Detectors on a local web page and as a JSON endpoint; deployed files are served without torch."""
