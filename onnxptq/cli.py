"""The commands, each a thin call into the package.

Exit codes: 0 success, 1 the answer is no, 2 bad input (one message on standard error), 130 interrupted.
"""

import errno
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onnxptq import __version__
from onnxptq.errors import OnnxptqError
from onnxptq.report import terminal
from onnxptq.report.terminal import Output

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(
    name="onnxptq",
    help="Quantize ONNX models to 2 to 8 bits a layer, in the layout that onnxruntime runs in integers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Storage(StrEnum):
    """How codes below 8 bits lie in the file."""

    PACKED = "packed"
    INT8 = "int8"


Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the answer as JSON; - for standard output."),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="An .npz, a folder of images, or a folder of ONNX test_data_set_* folders.",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="A name from models/zoo.toml, or resize=256,crop=224,mean=127,std=128,layout=NCHW."
        " Default: what is stored in the model.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Use the first N samples. Default: all.")
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", min=1, help="Samples fed at a time; more needs more memory.")
]
TargetOrt = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION", help="The onnxruntime the file is for. Default: the installed."
    ),
]
Reference = Annotated[
    Path | None, typer.Option(metavar="F.onnx", help="The float model to compare with.")
]


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; whatever the user can mend becomes one message on standard error.

    Returns:
        The exit code.
    """
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except OnnxptqError as error:
        terminal.complain(str(error))
    except (typer.Abort, KeyboardInterrupt):
        terminal.complain(
            "interrupted; output files are untouched. With --stats FILE, calibration goes on from "
            "its last checkpoint when the same command is run again"
        )
        return EXIT_INTERRUPTED
    except MemoryError:
        terminal.complain("out of memory; use a smaller --batch-size or fewer --samples")
    except OSError as error:
        terminal.complain(_os_message(error))
    except Exception as error:
        # typer carries a copy of click, so that the class of usage errors has no public name.
        if not hasattr(error, "format_message"):
            raise
        terminal.complain(f"{error.format_message()} (see onnxptq --help)")
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
    model: Annotated[Path, typer.Argument(metavar="M.onnx", help="The float model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="Q.onnx", help="The file to write.")
    ],
    data: Data,
    bits: Annotated[
        str, typer.Option(metavar="wXaY", help="Bits of weights and activations, 2 to 8 each.")
    ] = "w8a8",
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", metavar="SPEC", help='Such as "mse{p=2.4}" or "minmax".'),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Take all decisions from this recipe; no calibration."),
    ] = None,
    save_recipe: Annotated[
        Path | None, typer.Option(metavar="F", help="Write the decisions, to edit or repeat them.")
    ] = None,
    layer_bits: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=wXaY", help="Other bits for nodes or operators; repeatable."),
    ] = None,
    float_: Annotated[
        list[str] | None,
        typer.Option("--float", metavar="PATTERN", help="Nodes or operators to leave in float."),
    ] = None,
    keep_first_last: Annotated[
        bool, typer.Option(help="Keep 8 bits at the network's two ends.")
    ] = True,
    second_input_8: Annotated[
        bool, typer.Option("--second-input-8", help="Keep 8 bits at the second layer's input too.")
    ] = False,
    storage: Annotated[
        Storage, typer.Option(help="packed: a 3-bit weight takes 3 bits. int8: plain int8 codes.")
    ] = Storage.PACKED,
    target_ort: TargetOrt = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    batch_size: BatchSize = 8,
    stats: Annotated[
        Path | None,
        typer.Option(
            metavar="F", help="Keep calibration here: an interrupted run goes on from it."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes to work with.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same bytes.")] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="F.html", help="Write a page of plots and tables.")
    ] = None,
    json: Json = None,
) -> None:
    """Write a quantized model that onnxruntime runs in its integer kernels."""
    from onnxptq import pipeline
    from onnxptq.graph import io

    answer = Output(json)
    answer.check()
    for path in (output, save_recipe, report):
        if path is not None:
            io.writable(path)
    with terminal.progress_bars() as bars:
        result = pipeline.quantize(
            model,
            data,
            bits=bits,
            method=method,
            recipe=recipe,
            layer_bits=tuple(layer_bits or ()),
            float_patterns=tuple(float_ or ()),
            keep_first_last=keep_first_last,
            second_input_8=second_input_8,
            storage=storage.value,
            target_ort=target_ort,
            preprocess=preprocess,
            samples=samples,
            batch_size=batch_size,
            stats=stats,
            jobs=jobs,
            seed=seed,
            progress=bars,
        )
    result.save(output)
    if save_recipe is not None:
        io.write_atomically(save_recipe, result.recipe.to_json().encode())
    if report is not None:
        from onnxptq.report import page_of

        io.write_atomically(report, page_of.quantized(model, output, result.report).encode())
    answer.say(*summary.quantized(output, result.report))
    answer.answer(asdict(result.report))


@app.command()
def lint(
    model: Annotated[Path, typer.Argument(metavar="Q.onnx")],
    target_ort: TargetOrt = None,
    json: Json = None,
) -> None:
    """Show which nodes onnxruntime runs in integers, which in float, and why."""
    from onnxptq.runtime import lint as linter

    answer = Output(json)
    answer.check()
    result = linter.lint(model, target_ort)
    answer.say(*summary.linted(result))
    answer.answer(asdict(result))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="M.onnx", help="Float or quantized.")],
    data: Data,
    reference: Reference = None,
    samples: Samples = None,
    preprocess: Preprocess = None,
    batch_size: BatchSize = 8,
    json: Json = None,
) -> None:
    """Measure accuracy, and agreement with a float model."""
    from onnxptq.report.evaluate import evaluate_file

    answer = Output(json)
    answer.check()
    with terminal.progress_bars() as bars:
        options = DataOptions(preprocess, samples, batch_size)
        result = evaluate_file(model, data, reference, options, bars)
    answer.say(terminal.evaluation(result))
    answer.answer(asdict(result))
