"""Speeches and pairs: reading, cleaning, splitting."""
