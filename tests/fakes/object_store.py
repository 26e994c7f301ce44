"""A real object store, SeaweedFS, on this machine, for tests."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from arxiv_embeddings.spark.minicluster import find_free_ports

ACCESS, SECRET, BUCKET = "AKIATESTS", "not-to-be-shown", "papers"
KEYS = f"""{{"identities": [{{"name": "tests", "credentials": [{{"accessKey": "{ACCESS}", "secretKey": "{SECRET}"}}],
"actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"""
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION")
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
PORTS += ("filer.port", "filer.port.grpc", "s3.port.grpc", "s3.port")


@contextmanager
def running_store(folder: Path) -> Iterator[str]:
    "Run a store that keeps its data in a folder; the address of its S3. It has one bucket, and one pair of keys."
    (folder / "keys.json").write_text(KEYS)
    ports = find_free_ports(len(PORTS))
    command = [shutil.which("weed") or str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-dir={folder}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder / 'keys.json'}", "-volume.max=8"]
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    address = f"http://127.0.0.1:{ports[-1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(address, process, folder / "log")
        yield address
    finally:
        process.kill()
        process.wait()


def wait_until_ready(address: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    "Make the bucket, and wait until a file can be written."
    deadline, port = time.monotonic() + seconds, int(address.rpartition(":")[2])
    keys = {"access_key_id": ACCESS, "secret_access_key": SECRET, "token": None, "expires_at": None}
    config, options = {"endpoint": address, "region": "us-east-1"}, {"allow_http": True}
    store = S3Store(BUCKET, config=config, client_options=options, credential_provider=lambda: keys)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            signed = obstore.sign(store, "PUT", "", timedelta(minutes=1))
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                urllib.request.Request(signed, method="PUT")
            ).close()
            obstore.put(store, "ready", b"")
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the store did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
