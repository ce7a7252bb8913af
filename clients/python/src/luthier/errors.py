"""What calls raise."""

from __future__ import annotations

import dataclasses
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

# gRPC has one code for its own transport errors and for a server that says UNAVAILABLE; only the words differ.
_TRANSPORT_WORDS = (
    "failed to connect", "onnection refused", "ocket closed", "DNS resolution failed", "GOAWAY", "onnection reset",
    "ndpoint read failed", "Broken pipe", "recvmsg", "empty address list", "keepalive", "Transport closed",
    "connections to all backends failing", "rrors resolving", "ddress lookup failed",
)
# What gRPC says where an answer has the form of HTTP and not its own: a proxy, or another server.
_HTTP_ERROR = "Received http2 header with status"


@dataclasses.dataclass(frozen=True)
class FieldViolation:
    """One thing that is wrong with a request."""

    field: str
    description: str


class Error(Exception):
    """A call failed. `message` names field, value and remedy; `violations` lists all that is wrong with a request;
    `reason`, such as `TENANT_QUEUE_FULL`, is for programs, and empty if it was not the server that refused;
    `retry_after`: seconds after which the server says that another try may succeed."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        reason: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, violations, reason, retry_after)  # as pickle makes it again
        self.code = code
        self.message = message
        self.violations = violations
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Unreachable(Error):
    """Nothing answers at the address."""


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return cast(grpc.Call, error).code()


def from_grpc(error: grpc.RpcError, server: str) -> Error:
    """The error in words for a person."""
    call = cast(grpc.Call, error)
    code, message = call.code(), call.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and any(words in message for words in _TRANSPORT_WORDS):
        return Unreachable(code, f"no server answers at {server} ({message})")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Error(code, f"the server at {server} did not answer in time")
    if code == grpc.StatusCode.UNIMPLEMENTED and _HTTP_ERROR in message:
        wrong = f"what answers at {server} is no luthierd ({message}); give its address, or set LUTHIER_SERVER"
        return Error(grpc.StatusCode.FAILED_PRECONDITION, wrong)
    if code == grpc.StatusCode.UNIMPLEMENTED and not message:  # all that gRPC says of a method that is not there
        older = "it is older than this client; install the same version on both sides"
        return Error(code, f"the server at {server} has no such call: {older}")
    return Error(code, message, *_details_of(call))


def _details_of(call: grpc.Call) -> tuple[tuple[FieldViolation, ...], str, float | None]:
    violations: list[FieldViolation] = []
    reason = ""
    retry_after: float | None = None
    for key, value in call.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(cast(bytes, value)).details:
            bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
            if detail.Unpack(bad_request):
                violations += [FieldViolation(each.field, each.description) for each in bad_request.field_violations]
    return tuple(violations), reason, retry_after
