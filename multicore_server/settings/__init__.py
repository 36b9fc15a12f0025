"""The table of settings, their sources, and the meaning of gunicorn's and uvicorn's own options."""
