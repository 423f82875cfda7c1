"""What each onnxruntime version makes of our files: the source of the versions that we promise.

Each version gets a virtual environment of its own (pip needs network, or a wheel cache). Asked of
each file: does it load, is all of its computing in integers and all unpacking folded, are its
outputs those of `--storage int8` in the same version, and those of the newest version.
"""

import argparse
import json
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common, environments
from benchmarks.common import Row
from benchmarks.ort_files import Made, digits, make_files, resnet20
from onnxptq.rewrite.storage import FLOOR, parse_version
from onnxptq.runtime.targets import NEEDS

VERSIONS = ("1.22.*", "1.23.2", "1.24.4", "1.29.0", "newest")
PROBE = Path(__file__).resolve().parent / "ort_probe.py"


def environment(version: str, work: Path) -> Path:
    """The Python of a virtual environment with this onnxruntime."""
    newest = version == "newest"
    wanted = "onnxruntime" if newest else f"onnxruntime=={version}"
    folder = work / "venvs" / f"ort-{version.replace('.*', '')}"
    return environments.environment(folder, (wanted, "numpy", "onnx"), renew=newest)


def probe(version: str, request: Path, work: Path) -> Row:
    """Answers of one version."""
    python = environment(version, work)
    answer = request.with_name(f"answer-{version.replace('.*', '')}.json")
    common.progress(f"onnxruntime {version}: {request.name}")
    subprocess.run([str(python), str(PROBE), str(request), str(answer)], check=True)
    return json.loads(answer.read_text(encoding="utf-8"))


def judge(files: dict[str, Made], answers: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """For each file and version: loads, integer, folded, equal to int8, equal to newest."""
    newest = answers[-1]["files"]
    table: dict[str, dict[str, Row]] = {}
    for name in files:
        table[name] = {}
        for answer in answers:
            found, twin = answer["files"][name], answer["files"][f"{name} int8"]
            verdict: Row = {"loads": found["loads"], "error": found.get("error")}
            if found["loads"]:
                verdict |= {
                    "float": found["float"],
                    "unfolded": found["unfolded"],
                    "equal_int8": found["digest"] == twin.get("digest"),
                    "equal_newest": found["digest"] == newest[name].get("digest"),
                    "operators": found["operators"],
                }
            table[name][answer["onnxruntime"]] = verdict
    return table


def works(verdict: Row) -> bool:
    """Whether a version runs a file as promised."""
    if not verdict["loads"]:
        return False
    return verdict["equal_int8"] and not verdict["float"] and not verdict["unfolded"]


def cell(verdict: Row) -> str:
    """One cell of the printed table."""
    if not verdict["loads"]:
        return "refused"
    faults = [
        f"float {','.join(sorted(set(verdict['float'])))}" if verdict["float"] else "",
        f"unfolded {','.join(sorted(set(verdict['unfolded'])))}" if verdict["unfolded"] else "",
        "" if verdict["equal_int8"] else "not = int8",
        "" if verdict["equal_newest"] else "not = newest",
    ]
    return "; ".join(filter(None, faults)) or "ok"


def conclude(files: dict[str, Made], table: dict[str, dict[str, Row]]) -> list[Row]:
    """Measured first versions beside those that the project states."""
    pyproject = tomllib.loads((common.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    stated = next(
        text for text in pyproject["project"]["dependencies"] if text.startswith("onnxruntime")
    )
    plain = [name for name, made in files.items() if made.plain]
    rows = [
        _row("every file for no special target", "FLOOR", FLOOR, first_working(plain, table)),
        _row(
            "every file for no special target",
            "pyproject.toml",
            parse_version(stated.partition(">=")[2]),
            first_working(plain, table),
        ),
    ]
    for dtype, version in NEEDS.items():
        with_it = [name for name, made in files.items() if dtype.name in made.holds.split(", ")]
        rows.append(
            _row(f"files with {dtype.name}", "NEEDS", version, first_working(with_it, table))
        )
    return rows


def first_working(names: Sequence[str], table: dict[str, dict[str, Row]]) -> str | None:
    """The lowest version from which on all these files work; None if the newest fails too."""
    first = None
    for version in reversed(list(table[names[0]]) if names else []):
        if not all(works(table[name][version]) for name in names):
            break
        first = version
    return first


def _row(what: str, where: str, stated: tuple[int, ...], first: str | None) -> Row:
    text = ".".join(map(str, stated))
    holds = first is not None and parse_version(first) == stated
    return {"what": what, "stated in": where, "stated": text, "measured": first, "equal": holds}


def main() -> None:
    parser = common.parser(__doc__, "ort_versions")
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="oldest first")
    parser.add_argument("--only", choices=("digits", "resnet20"), help="one network")
    measure(parser.parse_args())


def measure(options: argparse.Namespace) -> None:
    work = options.work / "ort_versions"
    work.mkdir(parents=True, exist_ok=True)
    networks = {"digits": digits, "resnet20": resnet20}
    made = common.each(
        {
            name: lambda make=make: make_files(make(work), work)
            for name, make in networks.items()
            if options.only in (None, name)
        }
    )
    files: dict[str, Made] = {name: file for part in made.values() for name, file in part.items()}
    request = work / "request.json"
    entries = {name: {"model": str(f.path), "feeds": str(f.feeds)} for name, f in files.items()}
    entries |= {
        f"{name} int8": {"model": str(f.twin), "feeds": str(f.feeds)} for name, f in files.items()
    }
    request.write_text(json.dumps(entries), encoding="utf-8")
    answers = list(
        common.each(
            {
                f"onnxruntime {v}": lambda v=v: probe(v, request, options.work)
                for v in options.versions
            }
        ).values()
    )
    table = judge(files, answers)
    rows = [
        {"file": name, "holds": files[name].holds, **{v: cell(found) for v, found in row.items()}}
        for name, row in table.items()
    ]
    common.show("files: loads, all computing in integers, outputs equal", rows)
    keys = ("onnxruntime", "highest_opset", "highest_ir", "onnx", "numpy")
    opened = [{key: answer[key] for key in keys} for answer in answers]
    common.show("what each version opens", opened)
    conclusion = conclude(files, table)
    common.show("do the stated versions follow from it?", conclusion)
    results = {"files": table, "opens": opened, "conclusion": conclusion}
    common.write_results("ort_versions", results, options.out)


if __name__ == "__main__":
    main()
