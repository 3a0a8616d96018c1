"""Downloads of one large object and of many small files, beside other programs, from one server.

    python benchmarks/download.py [--megabytes 2000] [--files 5000] [--runs 3] [--python PYTHON]

The server is nginx, which sends files with sendfile; without it, a slow one of the tests. It is a
web server and a hub. PYTHON is an interpreter with pypdl, parfive and huggingface_hub; programs
that are missing are left out. All verify SHA-256 digests but curl and `hf download`, which verifies
none. Programs run in turn; each median has its range.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from machine import describe
from process_stats import ProcessStats, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.builders.web_server import COMMIT, entry, web_server

_SMALL_BYTES = 20_000
_STREAMS = 8
_PORT = 8098
_NGINX = """
worker_processes 2; daemon on; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 512; }}
http {{
  sendfile on; access_log off; keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port}; root {folder}/site; default_type application/octet-stream;
    location /api/ {{
      default_type application/json;
      rewrite ^/api/datasets/bench/(\\w+)(/revision/.*)?$ /api/$1.info.json break;
      rewrite ^/api/datasets/bench/(\\w+)/tree/ /api/$1.tree.json break;
    }}
    location /datasets/ {{
      add_header X-Repo-Commit {commit};
      rewrite ^/datasets/bench/(\\w+)/resolve/[^/]+/(.*)$ /bench/$1/$2 break;
    }}
  }}
}}
"""
_PYPDL = """
import json, sys
from pypdl import Pypdl
rows = json.load(open(sys.argv[1]))
tasks = [{"url": row["url"], "file_path": f"{sys.argv[2]}/{row['name']}"} for row in rows]
one = len(rows) == 1
done = Pypdl(max_concurrent=1 if one else 8).start(
    tasks=tasks, segments=8, multisegment=one, display=False, block=True
)
digests = {row["url"]: row["sha256"] for row in rows}
assert len(done) == len(rows)
assert all(file.validate_hash(digests[url], "sha256") for url, file in done)
"""
_PARFIVE = """
import json, sys
from parfive import Downloader
downloader = Downloader(max_conn=8, max_splits=8, progress=False)
for row in json.load(open(sys.argv[1])):
    checksum = f"sha-256={row['sha256']}"
    downloader.enqueue_file(row["url"], sys.argv[2], row["name"], checksum=checksum)
assert not downloader.download().errors
"""


def main(megabytes: float, files: int, runs: int, python: str) -> None:
    """Prints the seconds, the rate and the CPU time of each program."""
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"big": [int(megabytes * 1e6)], "small": [_SMALL_BYTES] * files}
        for dataset, of_files in sizes.items():
            write_dataset(folder / "site", dataset, of_files)
        with server(folder) as endpoint:
            for dataset, of_files in sizes.items():
                print(f"\n{dataset}: {len(of_files)} files, {sum(of_files) / 1e9:g} GB")
                compare(folder, endpoint, dataset, (sum(of_files), runs, python))


def write_dataset(site: Path, dataset: str, sizes: list[int]) -> None:
    """Writes random files, their list as an output of vlatool has it, and answers of a hub."""
    folder = site / "bench" / dataset
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    (folder / ".vlatool").mkdir(parents=True)
    for number, size in enumerate(sizes):
        path = folder / f"{number:05d}.bin"
        path.write_bytes(rng.bytes(size))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append({"path": path.name, "bytes": size, "sha256": digest})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / ".vlatool/files.jsonl").write_text(lines)
    (site / "api").mkdir(exist_ok=True)
    tree = [entry(path, folder) for path in sorted(folder.glob("*.bin"))]
    info = {"id": f"bench/{dataset}", "sha": COMMIT, "siblings": [], "tags": []}
    (site / f"api/{dataset}.tree.json").write_text(json.dumps(tree))
    (site / f"api/{dataset}.info.json").write_text(json.dumps(info))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serves `folder/site`; yields the endpoint."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        print("nginx is not installed: the server is one of the tests, which is slow")
        with web_server(folder / "site") as running:
            yield running.endpoint
        return
    folder.chmod(0o755)  # nginx may run as another user
    text = _NGINX.format(folder=folder, port=_PORT, commit=COMMIT)
    (folder / "nginx.conf").write_text(text)
    command = [program, "-c", str(folder / "nginx.conf")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{_PORT}"
    finally:
        subprocess.run([*command, "-s", "quit"], check=True, stderr=subprocess.DEVNULL)
        time.sleep(0.5)


def compare(folder: Path, endpoint: str, dataset: str, how: tuple[int, int, str]) -> None:
    """Runs the programs in turn; each writes to a new folder."""
    size, runs, python = how
    output = folder / "out"
    stats: dict[str, list[ProcessStats]] = {}
    for _ in range(runs):
        for name, command in commands(folder, endpoint, dataset, python).items():
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            stats.setdefault(name, []).append(run([*command]))
            files = [path for path in output.rglob("*.bin") if path.is_file()]
            assert sum(path.stat().st_size for path in files) == size, name
    for name, of_runs in stats.items():
        seconds = [stat.seconds for stat in of_runs]
        median = statistics.median(seconds)
        cpu = statistics.median(stat.cpu_s for stat in of_runs) / (size / 1e9)
        extremes = f"{min(seconds):.2f} to {max(seconds):.2f}"
        rate = f"{size / 1e6 / median:7.0f} MB/s {cpu:7.2f} CPU s/GB"
        print(f"{name:<18}{median:8.2f} s  ({extremes}){rate:>32}")


def commands(
    folder: Path, endpoint: str, dataset: str, python: str
) -> Mapping[str, tuple[str, ...]]:
    """Commands of the programs that are installed."""
    output, source = str(folder / "out"), f"{endpoint}/bench/{dataset}"
    lines = (folder / f"site/bench/{dataset}/.vlatool/files.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "name": json.loads(line)["path"]} for line in lines]
    rows = [{**row, "url": f"{source}/{row['name']}"} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    listed = (f'url = "{row["url"]}"\noutput = "{output}/{row["name"]}"\n' for row in rows)
    (folder / "curl.conf").write_text("".join(listed))
    environment = f"HF_ENDPOINT={endpoint}", f"HF_HOME={folder}/hf", "HF_HUB_OFFLINE=0"
    vlatool = ("env", *environment, sys.executable, "-m", "vlatool", "download", "--quiet")
    hf = str(Path(python).parent / "hf")
    every = {
        "curl": ("curl", "-sZ", "--parallel-max", str(_STREAMS), "-K", str(folder / "curl.conf")),
        "vlatool": (*vlatool, source, "--output", output),
        "pypdl": (python, "-c", _PYPDL, str(folder / "rows.json"), output),
        "parfive": (python, "-c", _PARFIVE, str(folder / "rows.json"), output),
        "vlatool, hub": (*vlatool, f"hf://datasets/bench/{dataset}", "--output", output),
        "hf download": (
            *("env", *environment, hf, "download", f"bench/{dataset}"),
            *("--repo-type", "dataset", "--local-dir", output, "--max-workers", str(_STREAMS)),
        ),
    }
    probes = {"pypdl": (python, "-c", "import pypdl"), "parfive": (python, "-c", "import parfive")}
    probes |= {"curl": ("curl", "--version"), "hf download": (hf, "version")}
    return {name: line for name, line in every.items() if works(probes.get(name))}


def works(probe: tuple[str, ...] | None) -> bool:
    """True if a program is installed."""
    if probe is None:
        return True
    try:
        return subprocess.run(probe, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    main(**vars(parser.parse_args()))
