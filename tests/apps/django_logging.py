"""Django with a LOGGING of its own: `disable_existing_loggers` is true, which is logging's default."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

LOGGING: dict[str, Any] = {
    "version": 1,
    "formatters": {"plain": {"format": "DJANGO %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", LOGGING=LOGGING)


def index(request: HttpRequest) -> HttpResponse:
    logging.getLogger("app").info("asked")
    return HttpResponse("ok")


urlpatterns = [path("", index)]
app = get_wsgi_application()
