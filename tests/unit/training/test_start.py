"""Command lines and errors of `--nproc`."""

import shlex
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from vlatool.jobs.executor import default_workers
from vlatool.training.ranks import Machine
from vlatool.training.start import check_processes, rank_arguments, torchrun_options

# the command


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("--json train -p tiny --nproc 2 --data d", "--json train -p tiny --data d"),
        ("train --nproc=2 --nproc 3 --hparams.lr -1e-4", "train --hparams.lr -1e-4"),
        ("train --nproc-like 2", "train --nproc-like 2"),
        ("train -- --nproc 2", "train -- --nproc 2"),
        ("train --nproc", "train"),
    ],
)
def test_ranks_run_the_command_line_without_nproc(typed: str, left: str) -> None:
    assert rank_arguments(typed.split()) == left.split()


def test_torchrun_parses_its_options() -> None:
    from torch.distributed import run

    options = torchrun_options(["train", "--config", "c", "--set", "name=a b"], 3)
    assert shlex.join(options) == (
        "--standalone --local_addr 127.0.0.1 --nproc_per_node 3 "
        "-m vlatool train --config c --set 'name=a b'"
    )
    parsed = run.parse_args(options)
    assert (parsed.module, parsed.training_script) == (True, "vlatool")
    assert parsed.training_script_args == ["train", "--config", "c", "--set", "name=a b"]


# errors


@pytest.mark.parametrize(("processes", "gpus"), [(0, 0), (-1, 4)])
def test_invalid_number_of_processes_is_an_error(processes: int, gpus: int) -> None:
    with fails("usage.bad_value"):
        check_processes(processes, gpus)


@pytest.mark.parametrize(("more", "gpus", "warnings"), [(0, 0, 0), (1, 0, 1), (1, 10**4, 0)])
def test_more_processes_than_processors_are_a_warning(more: int, gpus: int, warnings: int) -> None:
    recorder = Recorder()
    check_processes(default_workers() + more, gpus, recorder)
    assert [code for code, _ in recorder.warnings] == ["many_processes"] * warnings


def test_more_processes_than_gpus_are_an_error_with_the_number_of_gpus() -> None:
    check_processes(2, 2)
    with fails("environment.hardware", 6) as caught:
        check_processes(3, 2)
    assert caught.value.hint.endswith("--nproc 2")


@pytest.mark.parametrize("processes", [1, 2])
def test_rank_cannot_start_other_ranks(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with fails("usage.bad_value"):
        check_processes(processes, 0)


def test_machines_of_a_job_are_counted_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "resourceconfig.json"
    file.write_text('{"current_host": "algo-10", "hosts": ["algo-10", "algo-2", "algo-1"]}')
    node = Machine.of_environment({"VLATOOL_HOSTS": str(file)})
    assert node == Machine(index=2, count=3, first_host="algo-1")
    options = torchrun_options(["train"], 8, node)
    assert options[:6] == ["--nnodes", "3", "--node_rank", "2", "--master_addr", "algo-1"]
    assert Machine.of_environment({"VLATOOL_HOSTS": str(file), "WORLD_SIZE": "24"}) is None


@pytest.mark.parametrize("text", ["", "[]", '{"hosts": ["a"], "current_host": "b"}'])
def test_file_that_does_not_name_this_machine_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts.json").write_text(text)
    with fails("environment.hardware"):
        Machine.of_environment({"VLATOOL_HOSTS": str(tmp_path / "hosts.json")})
