"""A stand-in for the server of Weights & Biases, on the loopback: the part of its protocol that runs,
artifacts and `wandb sync` use, and what the client sent, to look at.

Written from what the client of wandb 0.31 asks (GraphQL operations by name, and the file stream).
"""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0123456789abcdef" * 2 + "01234567"  # any of 40 characters
ENTITY = "tester"
HISTORY = "wandb-history.jsonl"


@dataclass
class Run:
    """A run, as its processes have sent it."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, tags, …
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # lines by offset
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 0  # processes that began it, or went on with it
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.streams[HISTORY].items())]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streams["wandb-summary.json"]
        found: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The config as the user gave it."""
        return {key: node["value"] for key, node in self.config.items() if key != "_wandb"}


@dataclass
class Artifact:
    id: str
    type: str
    name: str
    aliases: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    client: str = ""  # the client's own id for it
    manifest: dict[str, Any] = field(default_factory=dict)
    state: str = "PENDING"
    linked: list[str] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """A search: its file, the values of the trials to come, and what to tell its agent."""

    config: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    stops: Callable[[Run], bool] = lambda run: False


class State:
    """What the server has been told."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.uploads: dict[str, bytes] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.stop_all = False
        self.unknown: list[str] = []
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.lock = threading.RLock()
        self.base = ""

    # Each method below answers the operation of its name.

    def Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False}
        return {"viewer": viewer | {"teams": {"edges": [{"node": {"name": ENTITY}}]}}}

    def ServerFeaturesQuery(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": self.project(given["project"]) | {"bucket": None}}
        lines = {name: [line for _, line in sorted(found.items())] for name, found in run.streams.items()}
        history, events = lines.get(HISTORY, []), lines.get("wandb-events.jsonl", [])
        bucket = self.bucket(run) | {
            "summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config),
            "tags": run.fields.get("tags") or [], "wandbConfig": '{"t": {}}',
            "logLineCount": len(lines.get("output.log", [])), "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
        }  # fmt: skip
        return {"model": self.project(run.project) | {"bucket": bucket}}

    def project(self, name: str) -> dict[str, Any]:
        return {"id": "p", "name": name, "entity": {"id": "e", "name": ENTITY}}

    def UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or next(run.name for run in self.runs.values() if run.name == given["id"])
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, given.get("project") or "uncategorized"))
        run.fields |= {key: value for key, value in given.items() if value is not None and key != "config"}
        run.starts += bool(given.get("program") or given.get("host"))
        if given.get("config"):
            run.config |= json.loads(given["config"])
        run.preempting |= given.get("state") == "preempting"
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": inserted}}

    def bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.name, "name": run.name, "displayName": run.fields.get("displayName") or run.name,
            "description": None, "config": "{}", "sweepName": run.fields.get("sweep"),
            "project": self.project(run.project),
            "historyLineCount": len(run.streams[HISTORY]),
        }  # fmt: skip

    def CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": self.url(f"files/{given['run']}/{name}")} for name in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def RunStoppedStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": self.is_stopped(given["runId"])}}}

    def UpsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep(yaml.safe_load(given["config"]))
        sweep = {"name": name, "project": self.project(given["projectName"])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def SweepWithRuns(self, given: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_dump(self.sweeps[given["sweep"]].config)
        return {"project": {"sweep": {"name": given["sweep"], "config": config, "runs": {"edges": []}}}}

    def CreateAgent(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": given["sweep"]}}}

    def Heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tells the agent to begin the next trial when none runs, to stop those that are to be ended early,
        and to end after the last."""
        sweep, busy = self.sweeps[given["id"]], list(json.loads(given["runState"]))
        told: list[dict[str, Any]] = []
        for name in busy:
            if self.is_stopped(name):
                told.append({"type": "stop", "run_id": name})
        if not busy and len(sweep.begun) < len(sweep.trials):
            values = sweep.trials[len(sweep.begun)]
            sweep.begun.append(f"{given['id']}trial{len(sweep.begun)}")
            args = {key: {"value": value} for key, value in values.items()}
            program = sweep.config["program"]
            told.append({"type": "run", "run_id": sweep.begun[-1], "program": program, "args": args})
        elif not busy:
            told.append({"type": "exit"})
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(told)}}

    def is_stopped(self, name: str) -> bool:
        """Whether the server asks the processes of a run to stop."""
        run = self.runs.get(name)
        by_sweep = any(sweep.stops(run) for sweep in self.sweeps.values() if run and name in sweep.begun)
        return self.stop_all or by_sweep

    def ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self.artifact(given["name"])
        return {"project": {"artifact": found and {"artifactType": {"name": found.type}}}}

    def CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        name, aliases = given["artifactCollectionName"], [one["alias"] for one in given.get("aliases") or []]
        same = [one for one in self.artifacts.values() if (one.name, one.digest) == (name, given["digest"])]
        made = (
            same[0] if same else Artifact(f"artifact{len(self.artifacts)}", given["artifactTypeName"], name)
        )
        made.digest, made.aliases = given["digest"], list(dict.fromkeys([*made.aliases, *aliases]))
        made.metadata = json.loads(given.get("metadata") or "{}")
        made.client = given["clientID"]
        self.artifacts[made.id] = made
        return {"createArtifact": {"artifact": self.described(made)}}

    def described(self, artifact: Artifact) -> dict[str, Any]:
        return {"id": artifact.id, "state": artifact.state, "artifactSequence": {"latestArtifact": None}}

    def CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": self.manifest(given["artifactID"])}

    def UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": self.manifest(given["artifactManifestID"])}

    def manifest(self, of: str) -> dict[str, Any]:
        file = {"id": of, "name": of, "displayName": of, "uploadUrl": self.url(f"manifests/{of}")}
        return {"artifactManifest": {"id": of, "file": file | {"uploadHeaders": []}}}

    def CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for one in given.get("artifactFiles") or []:
            path = f"artifacts/{one['artifactID']}/{one['name']}"
            node = {"id": path, "name": one["name"], "displayName": one["name"], "uploadUrl": self.url(path)}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "storagePath": path}
            edges.append({"node": node | {"artifact": {"id": one["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[given["artifactID"]].state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def UseArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[given["artifactID"]].used_by.append(given["runName"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:
        of, project = self.artifacts[given["id"]], self.project("imgcls") | {"internalId": "p"}
        facts: dict[str, Any] = {
            "__typename": "Artifact", "id": of.id, "digest": of.digest, "state": of.state, "commitHash": "c",
            "size": 1, "versionIndex": 0, "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z", "tags": [],
            "artifactType": {"name": of.type}, "metadata": json.dumps(of.metadata), "description": None,
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "historyStep": None, "updatedAt": None,
            "artifactSequence": {"__typename": "ArtifactSequence", "name": of.name, "project": project},
        }  # fmt: skip
        return {"artifact": facts | {"aliases": []}}

    def FetchOrgInfoFromEntity(self, given: dict[str, Any]) -> dict[str, Any]:
        organization = {"name": "org", "orgEntity": {"name": "org-entity"}}
        return {"entity": {"organization": organization, "user": None}}

    def LinkArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        collection = f"{given['projectName']}/{given['artifactPortfolioName']}"
        self.artifacts[given["artifactID"]].linked.append(collection)
        artifact = self.ArtifactByID({"id": given["artifactID"]})["artifact"]
        project = self.project(given["projectName"]) | {"internalId": "q"}
        member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0, "aliases": []}
        member |= {"createdAt": "2026-01-01T00:00:00Z", "artifact": artifact}
        member |= {"artifactCollection": {"__typename": "ArtifactPortfolio", "name": "c", "project": project}}
        return {"result": {"versionIndex": 0, "artifactMembership": member}}

    def ClientIDMapping(self, given: dict[str, Any]) -> dict[str, Any]:
        of = next((one for one in self.artifacts.values() if one.client == given["clientID"]), None)
        return {"clientIDMapping": of and {"serverID": of.id}}

    def artifact(self, name: str) -> Artifact | None:
        """Returns an artifact by its name with or without an alias."""
        plain = name.rpartition("/")[2].partition(":")[0]
        return next((one for one in reversed(self.artifacts.values()) if one.name == plain), None)

    def url(self, path: str) -> str:
        return f"{self.base}/put/{path}"

    def put(self, path: str, body: bytes) -> None:
        kind, _, rest = path.partition("/")
        self.uploads[path] = body
        if kind == "files":
            run, _, name = rest.partition("/")
            self.runs[run].files[name] = body
        if kind == "manifests":
            self.artifacts[rest].manifest = json.loads(body)

    def stream(self, run: Run, body: dict[str, Any]) -> dict[str, Any]:
        """Takes lines of a run's files, each with its place; says whether the run is to stop."""
        for name, chunk in (body.get("files") or {}).items():
            for place, line in enumerate(chunk["content"]):
                run.streams[name][chunk["offset"] + place] = line
        if body.get("complete"):
            run.exit_code = body["exitcode"]
        run.preempting |= bool(body.get("preempting"))
        return {"stopped": True} if self.is_stopped(run.name) else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # the client may end before it has read the answer
            super().handle_one_request()

    def answer(self, data: Any, status: int = 200) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body, state = self.body(), self.state
        with state.lock:
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName") or asked["query"].split("(")[0].split("{")[0].split()[-1]
                given = asked.get("variables") or {}
                given = given.get("input", given)
                state.queries.append((name, given))
                method = getattr(state, name, None)
                if method is None:
                    state.unknown.append(f"{name} {json.dumps(given)[:600]} {asked['query'][:3000]}")
                    return self.answer({"data": {}})
                try:
                    return self.answer({"data": method(given)})
                except (KeyError, StopIteration, TypeError) as error:  # a question that is not understood
                    state.unknown.append(f"{name}: {error!r} {json.dumps(given)[:2000]}")
                    return self.answer({"errors": [{"message": repr(error)}]}, 400)
            if self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                return self.answer(state.stream(state.runs[run], json.loads(body)))
        self.answer({})

    def do_PUT(self) -> None:
        body = self.body()
        with self.state.lock:
            self.state.put(self.path.removeprefix("/put/"), body)
        self.answer({})

    def do_GET(self) -> None:
        self.answer({}, 404)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the client uploads many files at a time


@contextmanager
def wandb_server() -> Iterator[State]:
    """Serves on a free port of the loopback until the block ends."""
    state = State()
    server = Server(("127.0.0.1", 0), type("Own", (Handler,), {"state": state}))
    state.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(state: State) -> dict[str, str]:
    """Returns the variables with which the client speaks to this server, and to no other."""
    return {
        "WANDB_BASE_URL": state.base,
        "WANDB_API_KEY": KEY,
        "WANDB_MODE": "online",
        "WANDB_ERROR_REPORTING": "false",
    }
