"""Detectors on a local web page, and as a JSON endpoint; without torch where a deployed file is served."""
