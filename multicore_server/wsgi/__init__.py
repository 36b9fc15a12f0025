"""The bridge that runs WSGI apps on ASGI."""
