"""Client of the quire inference server.

    from quire_client import Client

    with Client("127.0.0.1:50051") as client:
        for event in client.generate("Once upon a time", max_tokens=32):
            print(event.text, end="", flush=True)
        completion = client.generate("Once", max_tokens=32, n=4).result()
        print(completion.outputs[3].text, completion.usage.cached_tokens)

`AsyncClient` is the same with `async with`, `async for` and `await`.
"""

from .aio import AsyncClient, AsyncGeneration
from .channel import Tls
from .client import Client, Generation
from .errors import QuireError
from .request import Message, Prompt, RequestOptions, Retention
from .types import Completion, Event, KvUsage, Load, Model, Output, PolicyLoad, RequestLimits, TierLoad, Timings, TokenLogprob, Usage

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "Client",
    "Completion",
    "Event",
    "Generation",
    "KvUsage",
    "Load",
    "Message",
    "Model",
    "Output",
    "PolicyLoad",
    "Prompt",
    "QuireError",
    "RequestLimits",
    "RequestOptions",
    "Retention",
    "TierLoad",
    "Timings",
    "Tls",
    "TokenLogprob",
    "Usage",
]
