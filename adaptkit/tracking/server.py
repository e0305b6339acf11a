"""Check that a tracking server answers, within seconds: MLflow's own attempts would take minutes."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from adaptkit.errors import BadInput
from adaptkit.tracking.address import Address

REACH_SECONDS = 10.0


def check_server(address: Address) -> None:
    """Raise BadInput if an MLflow server does not answer."""
    reason: object
    try:
        # Without the login: urllib would treat it as part of the host name, and this page does not need it.
        urlopen(Request(f"{address.shown.rstrip('/')}/health"), timeout=REACH_SECONDS).close()
        return
    except HTTPError as error:  # the server has answered
        error.close()
        return
    except URLError as error:
        reason = error.reason
    except (OSError, HTTPException, ValueError) as error:
        reason = error
    if isinstance(reason, ssl.SSLError):  # settings of MLflow may make the certificate acceptable
        return
    if isinstance(reason, TimeoutError):
        reason = f"no answer within {REACH_SECONDS:.0f} s"
    text = str((isinstance(reason, OSError) and reason.strerror) or reason or type(reason).__name__)
    raise BadInput(f"cannot reach the MLflow server at {address.shown}: {address.without_secrets(text)}") from None


def clock_skew(address: Address) -> float | None:
    """Return how many seconds the clock of a server is ahead of the local clock; None if it does not send its time.

    The precision is one second.
    """
    before = time.time()
    try:
        with urlopen(Request(f"{address.shown.rstrip('/')}/health"), timeout=REACH_SECONDS) as answer:
            date = answer.headers.get("Date")
    except (OSError, HTTPException, ValueError):
        return None
    if date is None:
        return None
    try:
        server_time = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    local_time = (before + time.time()) / 2
    # The server omits fractions of a second: add their mean, 0.5.
    return server_time + 0.5 - local_time


def check_database(address: Address) -> None:
    """Raise BadInput if a database server does not answer, or if its driver is not installed."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(address.uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except ImportError as error:
        raise BadInput(f"the driver for {address.shown} is not installed: {error}") from None
    except (SQLAlchemyError, ValueError) as error:
        reason = address.without_secrets(str(error).strip().split("\n")[0])
        raise BadInput(f"cannot reach the tracking database at {address.shown}: {reason}") from None


def plain_server_error(address: Address, error: Exception) -> str | None:
    """Return a message if a server refused access; None for any other error."""
    code = getattr(error, "error_code", None)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return (
            f"the MLflow server at {address.shown} refuses access; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return None
