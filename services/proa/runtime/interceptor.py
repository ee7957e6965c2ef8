"""What interceptors of our servers have in common: they act on the unary calls of one service."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from proa.rpc import Context

Handler = Callable[[Any, Context], Awaitable[Any]]


class UnaryInterceptor(grpc.aio.ServerInterceptor, ABC):  # type: ignore[type-arg]
    """Puts `around` about every unary call of the service `service` (full name). Health, reflection
    and streams pass as they are."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    @abstractmethod
    def around(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler | None:
        """What handles this call instead; None: `handler` itself. `details.method` begins with
        /SERVICE/."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc."""
        handler = await continuation(handler_call_details)
        ours = handler_call_details.method.startswith(self._prefix)
        if not ours or handler is None or not handler.unary_unary:
            return handler
        found = self.around(handler.unary_unary, handler_call_details)
        if found is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            found,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
