"""Django's migrations, once in each deployment: a ``wsgi.py`` of the project in ``examples/django_project``.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.migrations.django_wsgi``, or with one process
``gunicorn examples.cluster.migrations.django_wsgi`` (gunicorn's own worker).
"""

import os
import sys
from pathlib import Path

from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

from multicore_server import cluster

sys.path.append(str(Path(__file__).parents[2] / "django_project"))  # your own wsgi.py is in your project
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = get_wsgi_application()


def migrate() -> int:
    call_command("migrate", verbosity=1, no_color=True)
    return os.getpid()


MIGRATED_BY = cluster.once_sync("migrate", migrate)
