from django.http import JsonResponse

from multicore_server import cluster
from mysite.models import Visit


def visits(request):
    Visit.objects.create(worker=cluster.instance)
    return JsonResponse({"visits": Visit.objects.count(), "worker": cluster.instance})


async def visits_async(request):
    await Visit.objects.acreate(worker=cluster.instance)
    return JsonResponse({"visits": await Visit.objects.acount(), "worker": cluster.instance})
