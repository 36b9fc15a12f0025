"""Placing and moving connections: processes come and go, connections stay."""
