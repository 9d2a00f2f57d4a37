"""Evaluation (paper, sections 4.1 and 4.2): facts, no pages.

Holds the metrics of reward models, RewardBench, policies' answers, matchups, judges' verdicts, win rates, expert
annotation and agreement. Functions return numbers and records; tables, figures and HTML are in report, and a policy in
training is evaluated from training.
"""
