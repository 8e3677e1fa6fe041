"""Evaluation: tasks, built-in problems, bits per byte, statistics and the evaluation command."""
