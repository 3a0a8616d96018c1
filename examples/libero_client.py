"""Rollouts in LIBERO with a policy that `vlatool serve` computes.

LIBERO needs old packages, so it gets an environment of its own, without vlatool (Python 3.8):

    pip install libero openpi-client typing_extensions    # and what LIBERO's own page lists
    python libero_client.py --suite libero_spatial --port 8000

The policy runs elsewhere: `vlatool serve RUN --map rollout-libero`. The protocol is that of
`vlatool eval rollout RUN --env libero/libero_spatial` (docs/evaluate.md).
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from libero.libero import get_libero_path
from libero.libero.benchmark import get_benchmark_dict
from libero.libero.envs import OffScreenRenderEnv
from openpi_client.websocket_client_policy import WebsocketClientPolicy

MAX_STEPS = {
    "libero_spatial": 250,
    "libero_object": 300,
    "libero_goal": 320,
    "libero_10": 550,
    "libero_90": 450,
}
SETTLING_STEPS = 10
WAIT = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
SEED = 7
TRIALS = 50  # of a task in the protocol


def main():
    """Runs the trials of each task and writes the results after each task."""
    options = parse(sys.argv[1:])
    suite = get_benchmark_dict()[options.suite]()
    tasks = options.tasks or range(suite.n_tasks)
    results = {}
    policy = None
    for number in tasks:
        task = suite.get_task(number)
        states = suite.get_task_init_states(number)
        folder = Path(get_libero_path("bddl_files")) / task.problem_folder
        simulator = OffScreenRenderEnv(
            bddl_file_name=str(folder / task.bddl_file),
            camera_heights=options.size,
            camera_widths=options.size,
        )
        successes, errors = 0, []
        for trial in range(min(options.trials, len(states))):
            try:
                policy = policy or WebsocketClientPolicy(options.host, options.port, options.key)
                seed = TRIALS * number + trial  # noise as in `vlatool eval rollout --seed 0`
                start = (seed, states[trial], task.language)
                successes += run_trial(policy, simulator, *start, options)
            except Exception as error:  # counted apart from failures
                policy = None  # the server closes the connection after an error
                errors.append(f"trial {trial}: {type(error).__name__}: {error}")
                print(f"{task.name}, {errors[-1]}", file=sys.stderr)
        simulator.close()
        episodes = min(options.trials, len(states)) - len(errors)
        results[task.name] = {"episodes": episodes, "successes": successes, "errors": errors}
        print(f"{successes} of {episodes}  {task.language}", flush=True)
        Path(options.output).write_text(json.dumps(results, indent=2))


def parse(arguments):
    """The options."""
    parser = argparse.ArgumentParser(description="Rollouts in LIBERO with a served policy.")
    parser.add_argument("--suite", choices=sorted(MAX_STEPS), default="libero_spatial")
    parser.add_argument("--tasks", type=int, nargs="*", help="indices of tasks; default: all")
    parser.add_argument("--trials", type=int, default=TRIALS, help="trials of each task")
    parser.add_argument("--replan-steps", type=int, default=4, help="steps of a plan to execute")
    parser.add_argument("--size", type=int, default=256, help="height and width of images")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key", help="key of the server")
    parser.add_argument("--output", default="libero-results.json")
    return parser.parse_args(arguments)


def run_trial(policy, simulator, seed, initial_state, instruction, options):
    """True if the policy succeeds from an initial state."""
    simulator.seed(SEED)
    simulator.reset()
    seen = simulator.set_init_state(initial_state)
    for _ in range(SETTLING_STEPS):
        seen, _, _, _ = simulator.step(WAIT)
    control = {"reset": True, "seed": seed}
    plan = []
    for _ in range(MAX_STEPS[options.suite]):
        # The server sees every step, because policies may take past images; it plans when asked.
        request = dict(observation(seen, instruction), vlatool=dict(control, observe=bool(plan)))
        reply = policy.infer(request)
        if not plan:
            plan = list(reply["actions"][: options.replan_steps])
        action = np.clip(plan.pop(0), -1.0, 1.0)
        seen, _, done, _ = simulator.step(action.tolist())
        control = {"executed": 1}
        if done:
            return True
    return False


def observation(seen, instruction):
    """An observation with the names of the published data set; its images are turned."""
    state = [
        seen["robot0_eef_pos"],
        axis_angle(seen["robot0_eef_quat"]),
        seen["robot0_gripper_qpos"],
    ]
    return {
        "image": np.ascontiguousarray(seen["agentview_image"][::-1, ::-1]),
        "wrist_image": np.ascontiguousarray(seen["robot0_eye_in_hand_image"][::-1, ::-1]),
        "state": np.concatenate(state).astype(np.float32),
        "instruction": str(instruction),
    }


def axis_angle(quaternion):
    """Axis times angle (0 to 2 pi) of a quaternion x, y, z, w."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3]) * 2.0 * math.acos(w) / sine


if __name__ == "__main__":
    main()
