"""Metrics: defines, counts and shows them, and aggregates the app's own."""
