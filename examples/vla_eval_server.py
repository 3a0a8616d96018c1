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
import sys

import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import DimSpec

from vlatool import ControlLoop, load_policy


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
        self.policy = load_policy(checkpoint)
        self.loop = ControlLoop(self.policy, execute_steps=execute_steps)
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
        seen = {name: obs["images"][key] for name, key in self.cameras.items()}
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
        value = value[word]
    start, _, stop = part.rstrip("]").partition(":")
    return np.asarray(value)[int(start or 0) : int(stop) if stop else None]


def parse(arguments):
    """The options; `--camera` and `--field` may be repeated."""
    parser = argparse.ArgumentParser(description="A policy for the benchmarks of vla-eval.")
    parser.add_argument("checkpoint")
    parser.add_argument("--camera", action="append", default=[], metavar="POLICY=BENCHMARK")
    parser.add_argument("--field", action="append", default=[], metavar="POLICY=KEY[0:3]")
    parser.add_argument("--action", action="append", default=[], metavar="FIELD")
    parser.add_argument("--execute-steps", type=int, default=4)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args(arguments)


def main():
    """Serves until it is interrupted."""
    options = parse(sys.argv[1:])
    names = [
        dict(pair.split("=", 1) for pair in pairs) for pairs in (options.camera, options.field)
    ]
    server = VlatoolServer(options.checkpoint, *names, options.action, options.execute_steps)
    print(f"listening on ws://{options.host}:{options.port}", file=sys.stderr)
    serve(server, options.host, options.port)


if __name__ == "__main__":
    main()
