"""Hostile addresses of stores, journals and tables of predictions."""

from __future__ import annotations

import json
import re

from hostile import environment, file_of, hostile, refusals, scratch, text_of

from adaptkit.errors import BadInput
from adaptkit.tracking.address import resolve
from adaptkit.tracking.journal import ABOUT, EVENTS, SENT, unused_journals
from adaptkit.tracking.predictions import read_predictions, read_table

TABLE = (
    b"image,test_set,group,fold,truth,prediction,p_0,p_1,p_2,base_prediction\n"
    b"0,clean,,,0,1,0.1,0.8,0.1,\n1,shifted,a,0,2,2,0,0,1,1\n"
)
EARLIER_TABLE = (
    b"test_set,image,truth,prediction,confidence,base_prediction\n"
    b"clean,0,0,1,0.9,\nshifted,1,2,2,0.7,1\nshifted,2,1,1,0.6,0\n"
)


@hostile(
    b"http://user@host:5000/base?x=1",
    b"sqlite:///mlflow.db?x=1",
    b"postgresql+psycopg2://u@h/d",
    b"file:///a",
    b"//u@h/x",
    words=(
        "http://",
        "sqlite:///",
        "postgresql://",
        "mysql+pymysql://",
        "file:",
        "databricks",
        "@",
        "%40",
        "?",
        "mlruns",
    ),
    found=(
        b"postgresql+psycopg2@://u@h/d",
        b"file://[a",
        b"sqlite://me@host/x",
        b"//me@host/x",
        b"databricks\xb1@",
    ),
)
def test_address(data: bytes) -> None:
    """Parse `--tracking-uri`; a password in it must not be shown."""
    secret = "hunter2-s3cret"
    given = text_of(data).replace("@", f":{secret}@", 1)
    try:
        found = resolve(given or None)
        told = f"it is {given} and {found.uri}" if found.path is None else "of a file"
        said = [repr(found), found.shown, str(found.ui_command), found.runs_url("1"), found.without_secrets(told)]
    except BadInput as error:
        said = list(error.problems)
    # Paths of files are not secrets, and neither is text after the first slash or ? of an address.
    is_file = re.match(r"(file:|sqlite(\+pysqlite)?:)?(/(?!/)|//[^/]*[/?]|[^/@:]*/)", given, flags=re.IGNORECASE)
    assert is_file or not any(secret in text for text in said), said


@hostile(
    json.dumps(dict.fromkeys(("local_id", "name", "store", "experiment"), "x")).encode()
    + b'\0{"events": 1, "run_id": "x"}\0'
    + b'{"number": 1, "do": "end", "status": "FAILED", "at": 1}\n{"number": 2, "do": "log", "params": {}}',
    words=('"events": ', '"number": ', '"do": "create"', '"do": "put"', "Infinity", "NaN", "[", "\n"),
    found=(
        b"[" * 100_000,
        b'{"local_id": 1, "name": 1, "store": 1, "experiment": 1}\0{"events": Infinity}\0{"number": Infinity}',
        b'{"local_id": 1, "name": 1, "store": 1, "experiment": 1}\0{}\0' + b"[" * 100_000,
    ),
)
def test_journal(data: bytes) -> None:
    """Read journals in the state folder. The input holds about.json, sent.json and events.jsonl."""
    folder = scratch() / "state" / "journals" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip((ABOUT, SENT, EVENTS), [*data.split(b"\0", 2), b"", b""], strict=False):
        (folder / name).write_bytes(content)
    with refusals(), environment(ADAPTKIT_STATE=str(scratch() / "state")):
        for found in unused_journals():
            found.unsent()


@hostile(
    TABLE,
    EARLIER_TABLE,
    words=("clean,", "shifted,", '"', "\r\n", "9" * 30, "nan", "1_0"),
    found=(
        b'test_set,image,truth,prediction,confidence,base_prediction\n"clean{0,0,1,0.9,\nshifted,1,2,2,0.7,1\n',
        b"test_set,image,truth,prediction,confidence,base_prediction\nclean,0,0,1," + b"9" * 200_000 + b",\n",
    ),
)
def test_predictions(data: bytes) -> None:
    """Read a run's table of predictions, as `compare` does."""
    with refusals(ValueError, KeyError):
        read_predictions(read_table(file_of(data, "predictions.csv")), ["0", "1", "2"])
