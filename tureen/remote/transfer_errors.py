"""Maps the errors of huggingface_hub, s3fs and fsspec to errors of Tureen, by status and by class name.

Imports none of these packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tureen.errors import BundleTransferError, TureenError, UnreachableHostError
from tureen.remote.address import FILE, HUB, S3, BundleAddress

LOG_IN: Final = {
    HUB: "log in with `hf auth login`, or set HF_TOKEN",
    S3: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    FILE: "ask the owner of the directory",
}
# Base classes of the errors of httpx, botocore, aiohttp, Python and huggingface_hub about a connection.
_CONNECTION_ERRORS: Final = {"TransportError", "HTTPClientError", "ClientConnectionError", "ConnectionError"}
_TIMEOUT_ERRORS: Final = {"TimeoutError", "TimeoutException"}
_CREDENTIAL_ERRORS: Final = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}


@contextmanager
def transfer_errors(address: BundleAddress) -> Iterator[None]:
    """Raises each error of the block as a BundleTransferError about `address`; an error of Tureen stays as it is."""
    try:
        yield
    except TureenError:
        raise
    except Exception as error:  # each package has its own tree of errors
        raise transfer_error(address, error) from error


def transfer_error(address: BundleAddress, error: Exception) -> BundleTransferError:
    """Returns the error of Tureen for an error of a package. Reads the status of the first response in its causes."""
    chain = list(_causes(error))
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    status = response_status(error)
    if status == 401 or names & _CREDENTIAL_ERRORS:
        absent = ", or does not exist" * (address.scheme == HUB)
        return BundleTransferError(f"{address} needs credentials (401){absent}: {LOG_IN[address.scheme]}")
    if status == 403 or (status is None and any(isinstance(one, PermissionError) for one in chain)):
        return BundleTransferError(f"{address} refuses these credentials (403): {LOG_IN[address.scheme]}")
    if status == 404 or (status is None and any(isinstance(one, FileNotFoundError) for one in chain)):
        what = "the name and the revision" if address.scheme == HUB else "the name"
        missing = BundleTransferError(f"there is no bundle at {address} (404): check {what}")
        missing.is_missing = True
        return missing
    if status is not None:
        kind = UnreachableHostError if status >= 500 or status in (408, 429) else BundleTransferError
        return kind(f"the host of {address} responds with status {status}: try again later")
    if names & (_CONNECTION_ERRORS | _TIMEOUT_ERRORS):
        return UnreachableHostError(f"the host of {address} cannot be reached: check the network")
    return BundleTransferError(f"{address} cannot be read or written ({type(error).__name__})")


def response_status(error: BaseException) -> int | None:
    """Returns the status of the first HTTP response that the error or one of its causes holds; None: there is none."""
    return next((status for one in _causes(error) if (status := _status(one)) is not None), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """Returns the status of the HTTP response that the error holds; None if it holds none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None
