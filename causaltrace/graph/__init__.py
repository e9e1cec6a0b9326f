"""Provenance: how a label came to a score."""
