"""A configuration of gunicorn: TLS 1.3 or nothing."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any


def ssl_context(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
