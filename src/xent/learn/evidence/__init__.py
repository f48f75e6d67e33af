"""Mutual information of features and a class, and maps of the places that decide a class."""
