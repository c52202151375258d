"""What schemathesis cannot know: ids that exist.

Most of what it makes up would end in a 404. Three times out of four the agent and the run that the
server was given are used instead, so that what comes behind the look-up is tried too.
"""

import os

import schemathesis

KNOWN = {"agent_id": os.environ["FUZZ_AGENT_ID"], "run_id": os.environ["FUZZ_RUN_ID"]}


@schemathesis.hook
def before_load_schema(ctx, raw_schema):
    # The spec describes the data of an event, schemathesis would have the whole frame described.
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)


@schemathesis.hook
def map_path_parameters(ctx, path_parameters):
    # The run must be there for the others.
    if not path_parameters or (ctx.operation is not None and ctx.operation.method.lower() == "delete"):
        return path_parameters
    for name, known in KNOWN.items():
        # By what was made up, not by chance: the same seed tries the same.
        if name in path_parameters and sum(str(path_parameters[name]).encode()) % 4:
            path_parameters[name] = known
    return path_parameters
