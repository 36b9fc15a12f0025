"""What a start would refuse, what would have no effect, and what would clash: found without a start."""
