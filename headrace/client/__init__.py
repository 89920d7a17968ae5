"""The Python client: calls models, with typed answers, retries and time limits. Needs httpx only, and no project.

from headrace.client import Client

with Client("https://models.example.com", token) as models:
    answer = models.predict("digits", {"image": image})
    answer.predictions[0]["label"]
"""

from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.async_client import AsyncClient
from headrace.client.client import Client
from headrace.client.errors import (
    CallFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    RateLimited,
    StreamInterrupted,
    TimedOut,
    Unauthorized,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "Batch",
    "CallFailed",
    "Client",
    "Explanation",
    "Forbidden",
    "InvalidInput",
    "NotFound",
    "Piece",
    "Prediction",
    "QuotaExceeded",
    "RateLimited",
    "StreamInterrupted",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
]
