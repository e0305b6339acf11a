"""MLflow's filter language, in which a bare name may be a param's."""

from __future__ import annotations

import re

#: what MLflow's filter language knows by itself; any other bare name is a param's
ENTITIES = {"params", "param", "parameter", "parameters", "metrics", "metric", "tags", "tag", "attribute", "attributes"}
ENTITIES |= {"attr", "run", "dataset", "datasets"}
ATTRIBUTES = {
    "status", "start_time", "end_time", "artifact_uri", "run_name", "run_id", "user_id", "experiment_id",
    "created", "Created", "run name", "Run name",
}  # fmt: skip
CONDITION = re.compile(
    r"(?<![\w.`])([A-Za-z_][\w.-]*)(?=\s*(?:!=|<=|>=|=|<|>|(?:NOT\s+)?(?:I?LIKE|IN)\b|IS\b))", re.IGNORECASE
)
QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)""")


def with_params(where: str) -> str:
    """Return a filter in which bare names that MLflow does not know are params, as in `shift.rotate = '45.0'`."""

    def qualified(found: re.Match[str]) -> str:
        name = found[1]
        known = name in ATTRIBUTES or name.split(".")[0].lower() in ENTITIES or name.upper() in ("AND", "NOT")
        return name if known else f"params.`{name}`"

    parts = QUOTED.split(where)
    # Every second part is quoted: a value, or a name that says itself what it is.
    return "".join(part if index % 2 else CONDITION.sub(qualified, part) for index, part in enumerate(parts))
