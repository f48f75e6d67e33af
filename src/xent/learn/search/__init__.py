"""The cross-entropy method: search and rare events."""
