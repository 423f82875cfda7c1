"""The commands, each a thin call into the package.

Exit codes: 0 success, 1 the answer is no, 2 bad input (one message on standard error),
130 interrupted.
"""

import errno
import io as io_module
import json as jsonlib
import shlex
import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxptq import __version__, flags
from onnxptq.errors import ModelError, OnnxptqError, SpecError
from onnxptq.report import terminal
from onnxptq.report.terminal import Output

EXIT_NO = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
DEMO_SAMPLES = 256
INTERRUPTED = (
    "interrupted; files that existed are as they were. With --stats FILE, calibration goes on from"
    " its last checkpoint when the same command is run again"
)

app = typer.Typer(
    name="onnxptq",
    help="Quantize ONNX models to 2 to 8 bits a layer, as onnxruntime runs them in integers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; whatever the user can mend becomes one message on standard error.

    Returns:
        The exit code.
    """
    try:
        code = int(app(arguments, prog_name="onnxptq", standalone_mode=False) or 0)
    except OnnxptqError as error:
        terminal.complain(str(error))
    except (typer.Abort, KeyboardInterrupt):
        terminal.complain(INTERRUPTED)
        return EXIT_INTERRUPTED
    except MemoryError:
        terminal.complain("out of memory; use a smaller --batch-size or fewer --samples")
    except OSError as error:
        terminal.complain(_os_message(error))
    except Exception as error:
        # typer carries a copy of click, so that the class of usage errors has no public name.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        terminal.complain(f"{message().rstrip('.')}; see onnxptq --help")
    else:
        if code == EXIT_INTERRUPTED:  # newer versions of typer catch Ctrl-C themselves
            terminal.complain(INTERRUPTED)
        return code
    return EXIT_BAD_INPUT


def _os_message(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    mend = "; free some space and run again" if error.errno == errno.ENOSPC else ""
    return f"{place}{error.strerror or error}{mend}"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"onnxptq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version


@app.command()
def quantize(
    model: flags.FloatModel,
    output: flags.OutputModel,
    data: flags.CalibrationData = None,
    bits: flags.Bits = "w8a8",
    quality: flags.QualityFlag = flags.Quality.FAST,
    method: flags.Method = None,
    iterations: flags.Iterations = None,
    recipe: flags.RecipeIn = None,
    save_recipe: flags.RecipeOut = None,
    layer_bits: flags.LayerBits = None,
    float_: flags.Float = None,
    keep_first_last: flags.KeepFirstLast = True,
    second_input_8: flags.SecondInput8 = False,
    per_tensor: flags.PerTensor = False,
    storage: flags.StorageFlag = flags.Storage.PACKED,
    target_ort: flags.TargetOrt = None,
    average_bits: flags.AverageBits = None,
    max_bytes: flags.MaxBytes = None,
    max_latency_ms: flags.MaxLatency = None,
    pareto: flags.Pareto = None,
    preprocess: flags.Preprocess = None,
    samples: flags.Samples = None,
    batch_size: flags.CalibrationBatch = None,
    stats: flags.Stats = None,
    jobs: flags.Jobs = 2,
    seed: flags.Seed = 0,
    report_: flags.Report = None,
    report_samples: flags.ReportSamples = 4,
    json: flags.Json = None,
) -> None:
    """Write a quantized model that onnxruntime runs in its integer kernels."""
    from onnxptq import pipeline
    from onnxptq.calibrate.progress import Bar
    from onnxptq.graph import io

    answer = Output(json)
    answer.check()
    for path in (output, save_recipe, report_, pareto):
        if path is not None:
            io.writable(path)
    result = pipeline.quantize(
        model,
        data,
        bits=bits,
        quality=quality.value,
        method=method,
        iterations=iterations,
        recipe=recipe,
        layer_bits=tuple(layer_bits or ()),
        float_patterns=tuple(float_ or ()),
        keep_first_last=keep_first_last,
        second_input_8=second_input_8,
        per_channel=not per_tensor,
        storage=storage.value,
        target_ort=target_ort,
        average_bits=average_bits,
        max_bytes=max_bytes,
        max_latency_ms=max_latency_ms,
        pareto=pareto,
        preprocess=preprocess,
        samples=samples,
        batch_size=batch_size,
        stats=stats,
        report_samples=report_samples,
        jobs=jobs,
        seed=seed,
        progress=Bar(),
    )
    result.save(output)
    if save_recipe is not None:
        io.write_atomically(save_recipe, result.recipe.to_json().encode())
    if report_ is not None:
        from onnxptq.report.pages import quantized_page

        io.write_atomically(report_, quantized_page(output, result.report).encode())
    answer.say(*terminal.quantized(result.report), *terminal.notes(result.notes))
    answer.answer(asdict(result.report))


@app.command()
def lint(
    model: flags.QuantizedModel,
    target_ort: flags.TargetOrt = None,
    json: flags.Json = None,
) -> None:
    """Show which nodes onnxruntime runs in integers, which in float, and why."""
    from onnxptq.runtime import lint as linter

    answer = Output(json)
    answer.check()
    result = linter.lint(model, target_ort)
    risk = ", ".join(result.saturation_risk) or "none"
    counts = {"integer nodes": str(len(result.integer_nodes)), "saturation risk": risk}
    answer.say(terminal.facts(counts), terminal.float_nodes(result.float_nodes))
    answer.say(*terminal.notes((*result.target_problems, *terminal.slow(result.slow_nodes))))
    answer.answer(asdict(result))


@app.command()
def verify(
    model: flags.QuantizedModel,
    data: flags.VerifyData = None,
    samples: flags.VerifySamples = 4,
    program: flags.ProgramOut = None,
    preprocess: flags.Preprocess = None,
    json: flags.Json = None,
) -> None:
    """Compare the integer executor with onnxruntime, bit by bit, and prove its arithmetic."""
    from onnxptq.calibrate.progress import Bar
    from onnxptq.files import writable
    from onnxptq.report.inputs import DataOptions
    from onnxptq.report.verification import verify_file

    answer = Output(json)
    answer.check()
    if program is not None:
        writable(program)
    result = verify_file(model, data, DataOptions(preprocess, samples, 1), program, Bar())
    answer.say(*terminal.verification(result))
    answer.answer(asdict(result))
    if not result.holds:
        raise typer.Exit(EXIT_NO)


@app.command()
def bench(
    models: flags.BenchModels,
    threads: flags.Threads = "1",
    runs: flags.Runs = 30,
    data: flags.BenchData = None,
    batch_size: flags.BenchBatch = 1,
    shape: flags.Shapes = None,
    layers: flags.Layers = False,
    preprocess: flags.Preprocess = None,
    json: flags.Json = None,
) -> None:
    """Measure latency in onnxruntime and in the executor, in turns."""
    from onnxptq.calibrate.progress import Bar
    from onnxptq.report import terminal_bench
    from onnxptq.report.bench import BenchOptions, bench_files, parse_threads
    from onnxptq.report.bench_feeds import FeedOptions, parse_shapes

    answer = Output(json)
    answer.check()
    feeds = FeedOptions(data, preprocess, batch_size, parse_shapes(shape or ()))
    options = BenchOptions(parse_threads(threads), runs, layers, feeds)
    result = bench_files(models, options, Bar(by_itself=False))
    answer.say(*terminal_bench.bench(result, answer.width))
    answer.answer(result.answer())


@app.command()
def evaluate(
    model: flags.AnyModel,
    data: flags.Data,
    reference: flags.Reference = None,
    engine: flags.EngineFlag = flags.Engine.ONNXRUNTIME,
    samples: flags.Samples = None,
    preprocess: flags.Preprocess = None,
    batch_size: flags.BatchSize = 8,
    json: flags.Json = None,
) -> None:
    """Measure accuracy, and agreement with a float model."""
    from onnxptq.calibrate.progress import Bar
    from onnxptq.report.evaluate import evaluate_file
    from onnxptq.report.inputs import DataOptions

    answer = Output(json)
    answer.check()
    options = DataOptions(preprocess, samples, batch_size)
    result = evaluate_file(model, data, reference, options, Bar(), engine=str(engine))
    answer.say(terminal.evaluation(result))
    answer.answer(asdict(result))


@app.command()
def report(
    model: flags.QuantizedModel,
    output: flags.OutputPage,
    data: flags.Data,
    reference: flags.Reference = None,
    samples: flags.Samples = 16,
    preprocess: flags.Preprocess = None,
    batch_size: flags.BatchSize = 8,
    json: flags.Json = None,
) -> None:
    """Write a page of plots and tables, layer by layer."""
    from onnxptq.calibrate.progress import Bar
    from onnxptq.graph import io
    from onnxptq.report import pages
    from onnxptq.report.inputs import DataOptions

    answer = Output(json)
    answer.check()
    io.writable(output)
    options = DataOptions(preprocess, samples, batch_size)
    result = pages.measure_file(model, data, reference, options, Bar())
    io.write_atomically(output, pages.file_page(model, reference, result).encode())
    answer.say(terminal.worst_layers(result.layers), f"wrote {output}")
    answer.answer(asdict(result))


@app.command()
def export(
    source: flags.Source,
    output: flags.OutputModel,
    weights: flags.Weights = None,
    input_: flags.InputShape = "1x3x224x224",
    opset: flags.Opset = 21,
    json: flags.Json = None,
) -> None:
    """Write a torch module as ONNX, and check that both compute the same."""
    from onnxptq.graph import io

    answer, shape = Output(json), _shape(input_)
    answer.check()
    io.writable(output)
    try:
        from onnxptq.export import torch_onnx
    except ImportError as error:
        raise SpecError(f"export needs torch ({error}): pip install 'onnxptq[torch]'") from error
    result = torch_onnx.export(source, output, weights, shape, opset)
    answer.say(
        f"wrote {output}: {result.nodes} nodes, at most {result.max_abs_diff:.3g} from torch"
    )
    answer.answer({"nodes": result.nodes, "max_abs_diff": result.max_abs_diff})


def _shape(text: str) -> tuple[int, ...]:
    """The sides of "1x3x224x224"."""
    sides = text.split("x")
    if not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise SpecError(f"--input {text!r}: expected sizes like 1x3x224x224")
    return tuple(int(side) for side in sides)


@app.command()
def demo(
    out: flags.OutputFolder = Path("onnxptq-demo"),
    json: flags.Json = None,
) -> None:
    """Quantize a small network that comes with the package, and show what became of it."""
    import numpy as np

    from onnxptq import demo_data

    answer = Output(json)
    answer.check()
    calibration, images, labels = demo_data.load()
    model, calib, test = out / "digits.onnx", out / "calib.npz", out / "test.npz"
    quantized, page = out / "digits.w8a8.onnx", out / "report.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"--out {out}: cannot make the folder ({error.strerror})") from error
    shutil.copyfile(demo_data.model_path(), model)
    np.savez(calib, allow_pickle=False, **{demo_data.INPUT_NAME: calibration[:DEMO_SAMPLES]})
    np.savez(test, allow_pickle=False, **{demo_data.INPUT_NAME: images, "y": labels})
    steps: dict[str, list[str | Path]] = {
        "quantize": ["quantize", model, "-o", quantized, "--data", calib, "--report", page],
        "lint": ["lint", quantized],
        "verify": ["verify", quantized, "--data", test],
        "evaluate": ["evaluate", quantized, "--data", test, "--reference", model],
        "bench": ["bench", model, quantized, "--data", test],
    }
    answers = {name: _demo_step(name, step, out, answer) for name, step in steps.items()}
    answer.say("", f"the report: {page}")
    answer.answer(answers)


def _demo_step(name: str, step: list[str | Path], out: Path, answer: Output) -> Any:
    """Run one command as a user would type it; returns its JSON."""
    words = [str(word) for word in step]
    answer.say("", f"$ onnxptq {shlex.join(words)}")
    told = out / f"{name}.json"
    with redirect_stdout(io_module.StringIO()) if answer.json == "-" else nullcontext():
        app([*words, "--json", str(told)], prog_name="onnxptq", standalone_mode=False)
    return jsonlib.loads(told.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
