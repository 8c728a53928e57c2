"""Asks the real TensorFlow Serving what an exported policy says.

    python integration/serving/serve_docker.py served/my_policy/1

Starts the stock image on the model, asks for the greedy completions that were
recorded at export, compares, and stops the container. Where Docker cannot run
it says so and ends with status 0.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

IMAGE = "tensorflow/serving"
SECONDS_TO_LOAD = 300


def has_docker():
    """Whether a Docker daemon answers."""
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True)
    except FileNotFoundError:
        return False
    return asked.returncode == 0


def ask(url, body):
    """Posts JSON, or gets without a body; returns the parsed answer."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=300) as answer:
        return json.load(answer)


def differences(url, model):
    """Compares greedy completions over REST with those of the export.

    Args:
        url: str, such as `"http://127.0.0.1:8501/v1/models/my_policy"`.
        model: `pathlib.Path`. Folder of the version.

    Returns:
        list of `(prompt, expected, answered)`, empty if all are equal.
    """
    description = model / "assets.extra" / "keras_bond.json"
    examples = json.loads(description.read_text())["examples"]
    prompts = [example["prompt"] for example in examples]
    answers = ask(f"{url}:predict", {"instances": prompts})["predictions"]
    expected = [example["completion"] for example in examples]
    return [row for row in zip(prompts, expected, answers) if row[1] != row[2]]


def wait_until_ready(url):
    """Waits for the server to have loaded and warmed up the model."""
    end = time.monotonic() + SECONDS_TO_LOAD
    while time.monotonic() < end:
        try:
            (version,) = ask(url, None)["model_version_status"]
            if version["state"] == "AVAILABLE":
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(1)
    raise TimeoutError(f"{url} was not ready in {SECONDS_TO_LOAD} seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="folder of a version")
    parser.add_argument("--port", type=int, default=8501)
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    if not has_docker():
        print("Skipped: no Docker daemon answers here, so nothing was checked.")
        return 0
    name = model.parent.name
    command = ["docker", "run", "--rm", "--detach"]
    command += ["--publish", f"{arguments.port}:8501"]
    command += ["--volume", f"{model}:/models/{name}/{model.name}:ro"]
    command += ["--env", f"MODEL_NAME={name}", IMAGE]
    started = subprocess.run(command, capture_output=True, text=True)
    if started.returncode:
        print(f"Skipped: Docker could not start {IMAGE}: {started.stderr}")
        return 0
    url = f"http://127.0.0.1:{arguments.port}/v1/models/{name}"
    try:
        wait_until_ready(url)
        wrong = differences(url, model)
    finally:
        subprocess.run(["docker", "stop", started.stdout.strip()])
    print("\n".join(map(str, wrong)) or "The served tokens are the policy's.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
