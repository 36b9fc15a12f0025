"""Finds without a start what a start would refuse, what would have no effect, and what would clash."""
