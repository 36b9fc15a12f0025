"""The app's own prometheus_client metrics: kept in files by row, merged over the workers."""
