"""Corpora: readers of the manifest format and makers of training text and speech."""
