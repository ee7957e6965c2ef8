"""Many queries on one stream, their replies matched by id. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proa.client.messages import Call, Inputs, read_answer, read_stream_error
from proa.client.values import Answer
from proa.errors import BadAnswer, InvalidRequest, ProaError

INFLIGHT_MAX = 64
INFLIGHT_LIMIT = 10_000


def check_inflight(inflight_max: int) -> int:
    """Errors: InvalidRequest."""
    if not 1 <= inflight_max <= INFLIGHT_LIMIT:
        raise InvalidRequest(f"inflight_max {inflight_max} must be 1 to {INFLIGHT_LIMIT}")
    return inflight_max


class Batch:
    """Requests out in order, replies in in any order, answers out in order.

    All queries are written before the first is sent, so that a bad one stops the batch before it
    costs anything. With `return_errors` a failed query's error takes the place of its answer;
    otherwise `accept` raises it.
    """

    def __init__(
        self,
        call: Call,
        queries: Sequence[Inputs],
        input_name: str | None,
        *,
        return_errors: bool = False,
    ) -> None:
        self.call = call
        self._return_errors = return_errors
        self.requests = [call.write(q, input_name, str(i)) for i, q in enumerate(queries)]
        self._open = {request.id for request in self.requests}
        self._results: dict[str, Answer | ProaError] = {}

    def accept(self, reply: Any) -> None:
        """Take a ModelStreamInferResponse. Errors: those of a query, and BadAnswer."""
        key = reply.infer_response.id
        if reply.error_message:
            error = read_stream_error(reply)
            # Without an id there is no telling which query failed: the batch has.
            if not self._return_errors or not key:
                raise error
            result: Answer | ProaError = error
        else:
            result = read_answer(reply.infer_response)
        if key not in self._open:
            raise BadAnswer(f"the stream answered id {key!r}, for which nothing waits")
        self._open.remove(key)
        self._results[key] = result

    def answers(self) -> list[Answer]:
        """In the order of the queries. Errors: BadAnswer when the stream ended early."""
        return [found for found in self.results() if isinstance(found, Answer)]

    def results(self) -> list[Answer | ProaError]:
        """In the order of the queries. Errors: BadAnswer when the stream ended early."""
        if self._open:
            sent = len(self.requests)
            raise BadAnswer(f"the stream ended with {len(self._open)} of {sent} queries unanswered")
        return [self._results[request.id] for request in self.requests]
