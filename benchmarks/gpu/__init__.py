"""Measurements on a GPU; README.md says how a run goes."""
