"""Places and moves connections: processes come and go, connections stay."""
