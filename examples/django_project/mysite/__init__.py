"""A Django project on every CPU. Run ``python examples/django_project/manage.py migrate`` first.

ASGI: ``gunicorn -k multicore_server.Worker --chdir examples/django_project mysite.asgi``
WSGI: ``gunicorn -k multicore_server.Worker --chdir examples/django_project mysite.wsgi``
"""
