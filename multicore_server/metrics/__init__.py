"""Metrics: what they are, where they are counted, how they are shown; the app's own, aggregated."""
