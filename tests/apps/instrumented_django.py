"""Django in one file with django-prometheus, as ASGI and as WSGI."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import include, path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
)


def who(request: HttpRequest) -> JsonResponse:
    return JsonResponse(int(os.environ["MULTICORE_INSTANCE"]), safe=False)


def item(request: HttpRequest, number: int) -> JsonResponse:
    return JsonResponse(number, safe=False)


urlpatterns = [
    path("", who),
    path("items/<int:number>", item, name="item"),
    path("", include("django_prometheus.urls")),
]
app, wsgi = get_asgi_application(), get_wsgi_application()
