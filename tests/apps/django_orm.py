"""Django in one file, with a table that each view reads or writes."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="x",
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
)
django.setup()


class Word(models.Model):
    text = models.TextField()

    class Meta:
        app_label = "words"


with connection.schema_editor() as editor:
    editor.create_model(Word)
connection.close()


def words(request: HttpRequest) -> HttpResponse:
    Word.objects.create(text="word")
    return HttpResponse(f"{Word.objects.count()} words")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{word.text};" for word in Word.objects.all().iterator())


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{await Word.objects.acount()} words")


urlpatterns = [path("words", words), path("stream", stream), path("async", asynchronous)]
app = get_wsgi_application()
