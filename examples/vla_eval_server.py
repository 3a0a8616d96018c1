"""A trained policy for the benchmarks of vla-eval, over their socket.

    pip install 'vlatool[train]' vla-eval
    python vla_eval_server.py runs/mine --camera image=agentview --camera wrist_image=wrist \
        --field state=state --execute-steps 8 --port 8000
    vla-eval run --config configs/benchmarks/libero/spatial.yaml

The second command is vla-eval's, in its own environment; the benchmark sends observations as
`{"images": {NAME: uint8 [H, W, 3]}, "state": [C], "task_description": str}` and gets an action for
each. Episodes run one after the other: start a server for each shard of an evaluation.
"""

import argparse
import math
import sys

import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import DimSpec

from vlatool import ControlLoop, load_policy
from vlatool.errors import VlatoolError


class VlatoolServer(PredictModelServer):
    """Steps a policy through the episodes of a benchmark.

    Args:
        checkpoint: Run, checkpoint or export of any scheme.
        cameras: Camera of the policy to name of the benchmark; the same name where it is absent.
        fields: Field of the policy to key of the observation, with dots and slices as `state[0:3]`.
        actions: Action fields in the order of the benchmark's action; default: that of the policy.
        execute_steps: Steps of a chunk that are executed before the next one.
    """

    def __init__(self, checkpoint, cameras=None, fields=None, actions=(), execute_steps=4):
        super().__init__()
        self.policy = policy = load_policy(checkpoint)
        for given, known in (
            (cameras, policy.cameras),
            (fields, policy.fields),
            (actions, policy.actions),
        ):
            if unknown := [name for name in given or () if name not in known]:
                raise ValueError(f"the policy has no {unknown[0]!r}; it has {', '.join(known)}")
        # The simulator waits for each command, however long it takes.
        self.loop = ControlLoop(
            self.policy, execute_steps=execute_steps, max_plan_s=math.inf, max_age_s=math.inf
        )
        self.cameras = {name: (cameras or {}).get(name, name) for name in self.policy.cameras}
        self.fields = {name: (fields or {}).get(name, name) for name in self.policy.fields}
        self.actions = list(actions) or list(self.policy.actions)
        self.session, self.episodes = None, 0

    async def on_episode_start(self, config, ctx):
        """Starts an episode: number n has the noise of `load_policy` with seed n."""
        if self.session not in (None, ctx.session_id):
            raise RuntimeError("another session is in an episode: start a server for each shard")
        await super().on_episode_start(config, ctx)
        self.loop.reset(self.episodes)
        self.session, self.episodes = ctx.session_id, self.episodes + 1

    async def on_episode_end(self, result, ctx):
        """Ends an episode, so that another session may start one."""
        await super().on_episode_end(result, ctx)
        if self.session == ctx.session_id:
            self.session = None

    def predict(self, obs, ctx):
        """The action of the next step, float32 [A]."""
        if self.session != ctx.session_id:
            raise RuntimeError("no episode of this session has started")
        images = obs.get("images") or {}
        if missing := [key for key in self.cameras.values() if key not in images]:
            raise ValueError(f"no image {missing[0]!r} in the observation, which has {[*images]}")
        seen = {name: images[key] for name, key in self.cameras.items()}
        seen.update({name: part_of(obs, key) for name, key in self.fields.items()})
        if self.policy.has_instruction:
            seen["instruction"] = obs.get("task_description", "")
        commands = self.loop.step(seen)
        return {"actions": np.concatenate([commands[name] for name in self.actions])}

    def get_action_spec(self):
        """Widths of the action fields, whose meaning is that of the training data."""
        return {name: DimSpec(name, self.policy.actions[name], "any") for name in self.actions}

    def get_observation_spec(self):
        """Widths of the fields; images have none."""
        return {name: DimSpec(name, width, "any") for name, width in self.policy.fields.items()}

    def get_observation_params(self):
        """What vla-eval switches on in a benchmark: the state, if the policy has one."""
        return {"send_state": bool(self.fields)}


def part_of(observation, key):
    """Value of a key such as `state`, `robot.joints` or `state[0:3]`."""
    name, _, part = key.partition("[")
    value = observation
    for word in name.split("."):
        if not isinstance(value, dict) or word not in value:
            raise ValueError(f"no {name!r} in the observation, which has {[*observation]}")
        value = value[word]
    start, _, stop = part.rstrip("]").partition(":")
    return np.atleast_1d(value)[int(start or 0) : int(stop) if stop else None]


def pair(text):
    """The words before and after =."""
    name, sign, key = text.partition("=")
    if not (name and sign and key):
        raise argparse.ArgumentTypeError(f"{text!r} has no = between two names")
    return name, key


def parse(arguments):
    """The options; `--camera` and `--field` may be repeated."""
    parser = argparse.ArgumentParser(description="A policy for the benchmarks of vla-eval.")
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--camera", type=pair, action="append", default=[], metavar="POLICY=BENCHMARK"
    )
    parser.add_argument(
        "--field", type=pair, action="append", default=[], metavar="POLICY=KEY[0:3]"
    )
    parser.add_argument("--action", action="append", default=[], metavar="FIELD")
    parser.add_argument("--execute-steps", type=int, default=4)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args(arguments)


def main():
    """Serves until it is interrupted."""
    options = parse(sys.argv[1:])
    try:
        server = VlatoolServer(
            options.checkpoint,
            dict(options.camera),
            dict(options.field),
            options.action,
            options.execute_steps,
        )
    except (VlatoolError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"starting on ws://{options.host}:{options.port}", file=sys.stderr)
    try:
        serve(server, options.host, options.port)
    except* OSError as group:
        sys.exit(f"error: {group.exceptions[0]}")
    except* KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
