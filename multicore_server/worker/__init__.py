"""The process that serves: gunicorn's worker, uvicorn's server inside it, and its configuration."""
