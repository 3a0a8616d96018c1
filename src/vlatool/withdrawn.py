"""Names that were documented once, and what to use instead."""

from collections.abc import Mapping

# Options, configuration keys, figures, variables and Python names. An unknown name that you type
# is an error whose hint has this text; files that an earlier version wrote may still contain it.
WITHDRAWN: Mapping[str, str] = {
    "camera_lag": "the lag of cameras is not measured any more: remove the rule",
    "check_sink": "write an output, kill the command with SIGKILL, repeat it and compare the bytes",
    "gap_s": "divide the bag first: `mcap filter`, `ros2 bag convert` or `rosbag filter`",
    "image_lags": "the lag of cameras is not measured any more",
    "launch logs": "aws logs tail /aws/sagemaker/TrainingJobs --log-stream-name-prefix JOB",
    "launch ray": "ray up CLUSTER.yaml, then preprocess with --engine ray there",
    "launch_logs": "read /aws/sagemaker/TrainingJobs with boto3",
    "launch_ray_preprocess": "vlatool.preprocess with engine 'ray' and an address of a cluster",
    "marker": "divide the bag first: `mcap filter`, `ros2 bag convert` or `rosbag filter`",
    "sagemaker.package": "docker build, with a line for your package, and --sagemaker.image",
    "sagemaker.pip": "docker build, with a line for these packages, and --sagemaker.image",
}


def withdrawn_hint(name: str) -> str:
    """Hint on a withdrawn name; empty for others."""
    use = WITHDRAWN.get(name, "")
    return f"{name} is withdrawn: {use}" if use else ""
