"""The preference dataset (paper, section 3): collect, clean, label, respond, rate, pair.

Holds the readers of speeches and preference files, deduplication, splits by a hash,
the stages of a dataset, and mixtures. Pages and cards are in report; commands are in cli.
"""
