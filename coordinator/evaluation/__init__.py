"""Evaluation sets: questions with known answers, put to versions of a model, and how well these answer."""
