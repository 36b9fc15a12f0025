from django.db import models


class Visit(models.Model):
    worker = models.IntegerField(null=True)
    at = models.DateTimeField(auto_now_add=True)
