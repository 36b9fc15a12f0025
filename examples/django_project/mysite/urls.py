from django.urls import path

from mysite import views

urlpatterns = [
    path("", views.visits),
    path("async/", views.visits_async),
]
