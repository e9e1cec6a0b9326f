"""Timings, as ratios of a watched run to a plain one, taken in turn in one process."""
