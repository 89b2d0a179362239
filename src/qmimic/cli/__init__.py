"""The commands: they parse, call and print, and have no logic of their own."""

from qmimic.cli.entry import main as main
