"""The table of settings, their sources, and what gunicorn's and uvicorn's own names mean here."""
