"""Pixels and tasks with known truth: scenes, digits and the vocabulary they share."""
