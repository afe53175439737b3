"""The sections of `serving_load.py`, and what they share."""
