"""The bridge from WSGI to ASGI."""
