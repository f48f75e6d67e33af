"""Softmax and logistic regression: objective, solvers, paths, models in files."""
