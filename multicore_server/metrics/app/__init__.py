"""The app's own prometheus_client metrics: each row has its files, and a scrape merges them."""
