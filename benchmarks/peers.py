"""Other quantizers and ours on the same images, each file measured in the same onnxruntime.

Every peer runs in an environment of its own, on 128 images that became inputs once for all. Where
it has no file for a width, its own simulator's outputs are measured. What does not install, crashes
or takes too long stands in the table with the reason.
"""

import argparse
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import common, environments, real_models
from benchmarks.common import MissingError, Row
from benchmarks.peer_arms import BITS, PEERS, Peer
from benchmarks.real_models import Network
from onnxptq import ort
from onnxptq.calibrate.preprocess import Preprocess
from onnxptq.calibrate.progress import Silent
from onnxptq.errors import OnnxptqError
from onnxptq.graph import io
from onnxptq.methods import QUALITIES
from onnxptq.report.evaluate import Pair, evaluate, evaluate_file
from onnxptq.report.inputs import DataOptions, open_for
from onnxptq.runtime.lint import lint

SCRIPTS = Path(__file__).resolve().parent / "peer_scripts"
NETWORKS = {"resnet20": real_models.resnet20, "efficientnet_lite0": real_models.efficientnet}
OURS = "onnxptq"
OUR_METHOD = QUALITIES["fast"]
JUDGED = {"resnet20": ("top1",), "efficientnet_lite0": ("sqnr_db", "kl")}
"""What decides; 250 images are too few for a top-1."""
SMALLER_IS_BETTER = ("kl",)
BATCH = 50


@dataclass(frozen=True, slots=True)
class Job:
    """A network whose images became inputs, and how to work on it."""

    network: Network
    feeds: Mapping[str, Path]
    options: argparse.Namespace


def prepare(network: Network, options: argparse.Namespace) -> Job:
    """Write the inputs that all peers are fed, bit for bit those that we calibrate with."""
    name = ort.inputs(io.load(network.model))[0].name
    preprocess = Preprocess.parse(network.preprocess)
    feeds: dict[str, Path] = {}
    for part, source in (("calib", network.calibration), ("eval", network.evaluation)):
        feeds[part] = options.work / f"{network.name}.{source.stem}.feeds.npz"
        if not feeds[part].is_file():
            with np.load(source) as arrays:
                images = preprocess.apply(arrays["x"], str(source))
            np.savez(feeds[part], allow_pickle=False, **{name: images})
    return Job(network, feeds, options)


def widths(bits: str) -> tuple[int, int]:
    """Of weights and activations: "w4a8" gives 4 and 8."""
    found = re.fullmatch(r"w(\d+)a(\d+)", bits)
    if found is None:
        raise SystemExit(f"--bits: {bits!r} is not like w4a8")
    return int(found[1]), int(found[2])


def request(job: Job, peer: Peer, bits: str, method: str) -> Row:
    """What a peer's script reads: the fields of `peer_common.Request`."""
    network, options = job.network, job.options
    images = job.feeds["calib"].name.split(".")[1]
    stem = re.sub(r"\W+", "_", f"{network.name}.{images}.{peer.name}.{bits}.{method}")
    output = options.work / "peers" / f"{stem}.onnx"
    weight_bits, activation_bits = widths(bits)
    return {
        "model": str(network.model),
        "calibration": str(job.feeds["calib"]),
        "evaluation": str(job.feeds["eval"]),
        "input": ort.inputs(io.load(network.model))[0].name,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "method": method,
        "output": str(output),
        "logits": str(output.with_suffix(".npy")),
        "threads": options.threads,
    }


def run_peer(python: Path, script: str, asked: Row, options: argparse.Namespace) -> Row:
    """Let a script answer a request; a crash or a timeout is an answer too."""
    stem = Path(asked["output"])
    question, answer = stem.with_suffix(".request.json"), stem.with_suffix(".answer.json")
    if options.reuse and answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    for path in (answer, stem, Path(asked["logits"])):
        path.unlink(missing_ok=True)
    stem.parent.mkdir(parents=True, exist_ok=True)
    question.write_text(json.dumps(asked), encoding="utf-8")
    command = [str(python), str(SCRIPTS / f"{script}.py"), str(question), str(answer)]
    complaint = _run(command, stem.parent, options)
    if complaint is not None:
        answer.write_text(json.dumps({"error": complaint}), encoding="utf-8")
    return json.loads(answer.read_text(encoding="utf-8"))


def _run(command: Sequence[str], folder: Path, options: argparse.Namespace) -> str | None:
    """Run a command with all that it starts; why it failed, or None."""
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(options.threads)}
    log = folder / "last.log"
    with (
        log.open("wb") as written,
        subprocess.Popen(
            command,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        try:
            status = child.wait(options.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return f"stopped after {options.timeout:g} s"
    if not status:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"ended with {status}: {lines[-1] if lines else 'nothing said'}"


class Recorded:
    """Logits of a simulator behind the face of a session, in the order of the images."""

    def __init__(self, logits: npt.NDArray[Any], like: ort.Session) -> None:
        self.inputs, self.outputs = like.inputs, like.outputs
        self._logits, self._seen = logits, 0

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        start = self._seen
        self._seen += len(next(iter(feeds.values())))
        return {self.outputs[0].name: self._logits[start : self._seen]}


def measure(network: Network, output: Path, logits: Path) -> Row:
    """Evaluate a file, or the logits where there is none; an error is a row too."""
    options = DataOptions(network.preprocess, batch_size=BATCH)
    try:
        if not output.is_file():
            return _simulated(network, np.load(logits), options)
        found = evaluate_file(output, str(network.evaluation), network.model, options, Silent())
        return {**asdict(found), "bytes": output.stat().st_size, **integer_convs(output)}
    except (OnnxptqError, OSError) as error:
        return {"error": f"evaluating: {one_line(error)}"}


def _simulated(network: Network, logits: npt.NDArray[Any], options: DataOptions) -> Row:
    source = io.load(network.model)
    reference = ort.session(source)
    pair = Pair(Recorded(logits, reference), reference)
    data = open_for(source, reference.inputs, str(network.evaluation), options)
    return {**asdict(evaluate(pair, data, BATCH, Silent())), "simulated": True}


def integer_convs(path: Path) -> Row:
    """How many convolutions onnxruntime runs as integers, and how many nodes in float."""
    try:
        found = lint(path)
        total = sum(node.op_type == "Conv" for node in io.load(path).graph)
    except (OnnxptqError, KeyError, ValueError) as error:
        return {"lint": one_line(error)}
    floats = sum(node.op == "Conv" for node in found.float_nodes)
    return {
        "convs": total,
        "integer_convs": total - floats,
        "float_nodes": len(found.float_nodes),
    }


def one_line(error: object) -> str:
    """The first line of a message, cut to what a table holds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def peer_rows(job: Job, peer: Peer, bits: str, python: Path | str) -> list[Row]:
    """All methods of a peer at one width; `python` is its environment's, or why there is none."""
    base: Row = {"network": job.network.name, "bits": bits, "peer": peer.name}
    methods = peer.asked(bits, job.network.name, job.options.slow)
    if not methods:
        return [{**base, "error": f"not supported: {peer.refusal}"}]
    if isinstance(python, str):
        return [{**base, "error": python}]
    rows: list[Row] = []
    for method in methods:
        common.progress(f"{job.network.name} {bits}: {peer.name} {method}")
        asked = request(job, peer, bits, method)
        row = {**base, "method": method, **run_peer(python, peer.script, asked, job.options)}
        if "error" not in row:
            row |= measure(job.network, Path(asked["output"]), Path(asked["logits"]))
        rows.append(row)
    return rows


def our_row(job: Job, bits: str) -> Row:
    """Our own file, made in a process of its own."""
    network, options = job.network, job.options
    common.progress(f"{network.name} {bits}: {OURS}")
    output = options.work / "peers" / f"{network.name}.{OURS}.{bits}.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"method": OUR_METHOD, **dict(options.ours)}
    row: Row = {"network": network.name, "bits": bits, "peer": OURS, "method": chosen["method"]}
    row["settings"] = ", ".join(f"{name}={value}" for name, value in chosen.items())
    try:
        ran = common.run_job(
            "quantize",
            model=network.model,
            data=network.calibration,
            output=output,
            preprocess=network.preprocess,
            bits=bits,
            **chosen,
        )
    except RuntimeError as error:
        return {**row, "error": str(error).strip().splitlines()[-1][:200]}
    row["seconds"] = ran.answer["call_wall_s"]
    row["cpu_seconds"] = ran.answer["call_cpu_s"]
    return row | measure(network, output, output.with_suffix(".npy"))


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Per width, network and measure: ours beside the best that any peer reached."""
    found: list[Row] = []
    cells = dict.fromkeys((row["network"], row["bits"]) for row in rows)
    for network, bits in cells:
        here = [row for row in rows if (row["network"], row["bits"]) == (network, bits)]
        found += [
            {"network": network, "bits": bits, **verdict(here, measured)}
            for measured in JUDGED[network]
        ]
    return found


def verdict(rows: Sequence[Row], measured: str) -> Row:
    """Ours against the best peer by one measure; "by" is above 0 where ours is better."""
    sign = -1 if measured in SMALLER_IS_BETTER else 1
    known = [row for row in rows if row.get(measured) is not None]
    ours = next((row[measured] for row in known if row["peer"] == OURS), None)
    others = [row for row in known if row["peer"] != OURS]
    best = max(others, key=lambda row: sign * row[measured], default=None)
    row: Row = {"measure": measured, "ours": ours}
    if best is not None:
        row |= {"best peer": f"{best['peer']} {best['method']}", "theirs": best[measured]}
    if ours is None or best is None:
        return row
    by = sign * (ours - best[measured])
    return {**row, "by": by, "better": by > 0}


def table(rows: Sequence[Row]) -> list[Row]:
    """What people read of the rows."""
    return [
        {
            "bits": row["bits"],
            "peer": row["peer"],
            "method": row.get("method"),
            "top-1 %": _percent(row, "top1"),
            "agree %": _percent(row, "agreement"),
            "SQNR dB": row.get("sqnr_db"),
            "KL": row.get("kl"),
            "MB": row["bytes"] / 1e6 if "bytes" in row else None,
            "s": row.get("seconds"),
            "int. convs": f"{row['integer_convs']}/{row['convs']}" if "convs" in row else None,
            "float nodes": row.get("float_nodes"),
            "remark": row.get("error") or ("its simulator" if row.get("simulated") else None),
        }
        for row in rows
    ]


def _percent(row: Row, key: str) -> float | None:
    return None if row.get(key) is None else 100 * row[key]


def pythons(wanted: Sequence[Peer], work: Path) -> dict[str, Path | str]:
    """Each peer's Python, or why it could not be installed."""
    found: dict[str, Path | str] = {}
    for peer in wanted:
        try:
            found[peer.name] = environments.environment(work / "venvs" / peer.name, *peer.steps)
        except MissingError as missing:
            found[peer.name] = f"not installed: {one_line(missing)}"
    return found


def compare(make: Any, options: argparse.Namespace) -> list[Row]:
    """All peers and ours on one network, width by width."""
    job = prepare(make(options), options)
    wanted = [peer for peer in PEERS if options.only is None or peer.name in options.only]
    installed = pythons(wanted, options.work)
    rows: list[Row] = []
    for bits in options.bits:
        here = [our_row(job, bits)]
        for peer in wanted:
            here += peer_rows(job, peer, bits, installed[peer.name])
        common.show(f"{job.network.name} {bits}", table(here))
        rows += here
    return rows


def pair(text: str) -> tuple[str, Any]:
    """An option of `quantize` as it is written on the command line: "seed=1" gives ("seed", 1)."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not like method=mse")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    made = common.parser(__doc__, "peers")
    add = made.add_argument
    add("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    add("--bits", nargs="+", default=list(BITS))
    add("--only", nargs="*", choices=tuple(peer.name for peer in PEERS), help="peers; none: ours")
    add("--ours", nargs="+", type=pair, default=[], help="options of quantize, as key=value")
    add("--images", type=int, default=128, help="ImageNet calibration images")
    add("--cifar-images", type=int, default=128, help="CIFAR calibration images")
    add("--threads", type=int, default=2, help="threads of the peers")
    add("--timeout", type=float, default=600, help="seconds that a peer may take for a file")
    add("--reuse", action="store_true", help="take the peers' files of the run before")
    add("--slow", action="store_true", help="what takes more than the usual timeout too")
    return made.parse_args(words)


def main() -> None:
    options = parse()
    for bits in options.bits:
        widths(bits)
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    wanted = {name: make for name, make in NETWORKS.items() if name in options.networks}
    done = common.each(
        {name: lambda make=make: compare(make, options) for name, make in wanted.items()}
    )
    rows = [row for found in done.values() for row in found]
    judged = verdicts(rows)
    common.show("ours against the best peer", judged)
    parts = options.networks if set(options.networks) != set(NETWORKS) else []
    name = "-".join(["peers", *parts])
    common.write_results(name, {"rows": rows, "verdicts": judged}, options.out)


if __name__ == "__main__":
    main()
