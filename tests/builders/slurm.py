"""Stand-ins for the programs of Slurm, which run everything on this machine."""

import os
import sys
from pathlib import Path

# Starts the tasks of a step with the variables of Slurm, and passes SIGTERM on to them.
_SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1 + next(i for i, word in enumerate(sys.argv[1:]) if word[:2] != "--"):]
count, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
each = count // nodes
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
for task in range(count):
    step = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(task), "SLURM_STEP_ID": "0",
            "SLURM_LOCALID": str(task % each), "SLURM_NODEID": str(task // each),
            "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
            "SLURM_STEP_NODELIST": "localhost"}
    tasks.append(subprocess.Popen(words, env={**os.environ, **step}))
sys.exit(max(task.wait() % 256 for task in tasks))
"""
# Reads the options of a script and runs it.
_SBATCH = r"""
import os, re, subprocess, sys
script = sys.argv[-1]
lines = re.findall(r"^#SBATCH --(.+)$", open(script).read(), re.MULTILINE)
options = dict(line.replace('"', "").partition("=")[::2] for line in lines)
if options.get("partition") == "missing":
    sys.exit("sbatch: error: invalid partition specified: missing")
with open(os.path.join(os.path.dirname(__file__), "sbatch.environment"), "w") as file:
    print(*os.environ, sep="\n", file=file)
number = str(40_000 + os.getpid() % 20_000)
count = int(options["nodes"]) * int(options["ntasks-per-node"])
job = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": str(count)}
if "SLURM_STAND_IN_RUNS" in os.environ:
    with open(options["output"].replace("%j", number), "a") as log:
        subprocess.Popen(["bash", script], cwd=options["chdir"], env=job, stdout=log,
                         stderr=log, start_new_session=True)
print(number + ";cluster")
"""
_SCONTROL = """
import pathlib, sys
with (pathlib.Path(__file__).parent / "scontrol.log").open("a") as file:
    print(*sys.argv[1:], file=file)
"""


def slurm_programs(folder: Path) -> dict[str, str]:
    """Writes `srun`, `sbatch` and `scontrol`; returns the environment in which they are found."""
    folder.mkdir(parents=True)
    for name, text in {"srun": _SRUN, "sbatch": _SBATCH, "scontrol": _SCONTROL}.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
