"""A name in the mesh under ``cloister run``: certificate, key and anchors as files, for a program that knows no more."""

from __future__ import annotations

import json
from pathlib import Path

from deployment import cloister, start_service
from run_site import Site

PROGRAM = """
import json, os, socket, ssl, threading

files = [os.environ["CLOISTER_MESH_CERT"], os.environ["CLOISTER_MESH_KEY"]]
anchors = os.environ["CLOISTER_MESH_CA_WITH_ROOT"]

def context(purpose):
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(*files)
    made.load_verify_locations(anchors)
    made.verify_mode = ssl.CERT_REQUIRED
    return made

listener = socket.create_server(("127.0.0.1", 0))
seen = {}

def serve():
    connection, _ = listener.accept()
    with context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True) as secured:
        seen["client"] = secured.getpeercert()["subjectAltName"]
        secured.sendall(b"welcome")

thread = threading.Thread(target=serve)
thread.start()
with socket.create_connection(listener.getsockname()) as plain:
    client = context(ssl.PROTOCOL_TLS_CLIENT)
    with client.wrap_socket(plain, server_hostname="scorer.clinic.mesh.cloister") as secured:
        said = secured.recv(100).decode()
thread.join()
print(json.dumps({
    "said": said, "client": seen["client"], "uvicorn": os.environ["UVICORN_SSL_CERTFILE"] == files[0],
    "mode": oct(os.stat(files[1]).st_mode & 0o777),
}))
"""
MANIFEST = """
application = "clinic"
witnesses = "none"
[owners]
alice = "{alice}"
[update]
owners = ["alice"]
threshold = 1
[broker]
policies = ["work/broker-policy.toml"]
[workloads.scorer]
policies = ["run-policy.toml"]
[resources."default"]
owners = ["alice"]
threshold = 1
[auditors]
audrey = "{alice}"
"""
CONFIGURATION = """
name = "scorer"
[broker]
url = "{url}"
manifest = "manifest.json"
[identity]
workload = "scorer"
application = "clinic"
profiles = ["uvicorn", "ray"]
"""


def test_two_ends_with_the_mesh_s_files_know_each_other_by_the_names_that_owners_signed(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    alice = json.loads(cloister("manifest", "key", "--key", tmp_path / "index.key", "--json"))["key"]
    toml, signed = tmp_path / "clinic.toml", site.work / "manifest.json"
    toml.write_text(MANIFEST.format(alice=alice))
    pen, tee = ("--key", tmp_path / "index.key"), ("--simulated-tee", site.tee)
    origin = cloister("manifest", "origin", toml).strip()
    cloister("measure", "broker", "--origin", origin, *tee, "--out", site.work / "broker-policy.toml")
    # The run's policy depends on what the broker must be, and the manifest that says so holds the run's policy: the
    # broker's policies are the same in both versions, and only they are measured.
    (site.work / "program.py").write_text(PROGRAM)
    placeholder = tmp_path / "run-policy.toml"
    placeholder.write_text((site.work / "broker-policy.toml").read_text())
    first = tmp_path / "first.json"
    cloister("manifest", "new", toml, "--out", first)
    cloister("manifest", "sign", first, *pen)
    signed.write_bytes(first.read_bytes())
    configuration = site.work / "workload.toml"
    configuration.write_text(CONFIGURATION.format(url="http://127.0.0.1:1"))
    placeholder.unlink()
    argv = ["python", "program.py"]
    site.cloister("measure", "run", "--simulated-tee", str(site.tee), "--out", str(placeholder), "--", *argv)
    signed.unlink()
    cloister("manifest", "new", toml, "--out", signed)
    cloister("manifest", "sign", signed, *pen)

    broker = start_service(
        ["broker", "serve", "--state", tmp_path / "state", "--manifest", signed, *tee, "--port", "0"],
        tmp_path / "broker.log",
    )
    try:
        configuration.write_text(CONFIGURATION.format(url=broker.url))
        share = ("--broker", broker.url, "--manifest", signed, *pen)
        cloister("owner", "share", *share, "--out", tmp_path / "alice.share")
        done = site.run(argv)
        assert done.returncode == 0, done.stderr + (tmp_path / "broker.log").read_text()
        said = json.loads(done.stdout)
        assert said["said"] == "welcome"
        assert ["DNS", "scorer.clinic.mesh.cloister"] in said["client"]
        assert ["URI", "cloister://clinic/scorer"] in said["client"]
        assert said["uvicorn"]
        assert said["mode"] == "0o400"

        configuration.write_text(
            CONFIGURATION.format(url=broker.url).replace('workload = "scorer"', 'workload = "other"')
        )
        refused = site.run(argv)
        assert refused.returncode != 0
        assert refused.stdout == ""
    finally:
        broker.stop()
