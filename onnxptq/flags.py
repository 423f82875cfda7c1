"""The flags of the command line, one type each: name, place-holder, help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Storage(StrEnum):
    """How codes below 8 bits lie in the file."""

    PACKED = "packed"
    INT8 = "int8"


class Quality(StrEnum):
    """Which methods choose the numbers."""

    QUICK = "quick"
    FAST = "fast"
    BEST = "best"


class Engine(StrEnum):
    """What runs a model."""

    ONNXRUNTIME = "onnxruntime"
    INTEGER = "integer"


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
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="An .npz, a folder of images, or a folder of ONNX test_data_set_* folders."
        " Needed unless --recipe is given.",
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
    int | None, typer.Option(metavar="N", min=1, help="Use N samples. Default: all.")
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", min=1, help="Samples fed at a time; more needs more memory.")
]
CalibrationBatch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Samples fed at a time. Default: as many as keep memory small.",
    ),
]
TargetOrt = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION", help="The onnxruntime the file is for. Default: every supported one."
    ),
]
Reference = Annotated[
    Path | None, typer.Option(metavar="F.onnx", help="The float model to compare with.")
]
FloatModel = Annotated[Path, typer.Argument(metavar="M.onnx", help="The float model.")]
VerifyData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="What to feed. Default: made-up inputs that reach both ends of every code range.",
    ),
]
VerifySamples = Annotated[int, typer.Option(metavar="N", min=1, help="Use N samples.")]
ProgramOut = Annotated[
    Path | None,
    typer.Option("--program", metavar="F.npz", help="Write the integer program, to run it alone."),
]
EngineFlag = Annotated[
    Engine, typer.Option("--engine", help="What runs the model: onnxruntime, or the executor.")
]
QuantizedModel = Annotated[Path, typer.Argument(metavar="Q.onnx", help="A quantized model.")]
AnyModel = Annotated[Path, typer.Argument(metavar="M.onnx", help="Float or quantized.")]
BenchModels = Annotated[
    list[Path],
    typer.Argument(metavar="M.onnx...", help="Float and quantized models, or programs (.npz)."),
]
Threads = Annotated[
    str, typer.Option("--threads", metavar="N,N", help="Numbers of threads, such as 1,2.")
]
Runs = Annotated[int, typer.Option(metavar="N", min=1, help="Counted runs of each.")]
BenchData = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="What to feed. Default: random numbers."),
]
BenchBatch = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Samples a run.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3x224x224",
        help="Shape of an input with free sizes; repeatable. A free first size is the batch.",
    ),
]
Layers = Annotated[
    bool, typer.Option("--layers", help="Show each layer of the executor, against this machine.")
]
OutputModel = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The file to write.")
]
OutputPage = Annotated[
    Path, typer.Option("--output", "-o", metavar="R.html", help="The page to write.")
]
OutputFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything it writes.")]
Bits = Annotated[
    str, typer.Option(metavar="wXaY", help="Bits of weights and activations, 2 to 8 each.")
]
QualityFlag = Annotated[
    Quality,
    typer.Option(
        help="fast: weights are rounded against the data, in seconds to minutes; quick: ranges from"
        " statistics, rounding to nearest; best: weights and activations are learned by gradients,"
        " in minutes to an hour (needs the torch extra)."
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", metavar="SPEC", help='Instead: such as "mse{p=2.4},gptq".'),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Iterations of methods that learn by gradients; fewer is quicker."
    ),
]
RecipeIn = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="F", help="Take all decisions from this recipe."),
]
RecipeOut = Annotated[
    Path | None,
    typer.Option("--save-recipe", metavar="F", help="Write the decisions, to edit or repeat them."),
]
AverageBits = Annotated[
    float | None,
    typer.Option(metavar="X", help="Choose each weight's bits: at most X on average, 2 to 8."),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(metavar="N", help="Choose each weight's bits: a file of at most N bytes."),
]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        "--max-latency-ms",
        metavar="X",
        help="Choose each weight's bits: at most X ms in the executor, one thread, as measured.",
    ),
]
Pareto = Annotated[
    Path | None,
    typer.Option(metavar="F.json", help="Write what other budgets give, and a plot beside it."),
]
LayerBits = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=wXaY", help="Other bits for nodes or operators; repeatable."),
]
Float = Annotated[
    list[str] | None,
    typer.Option(
        "--float", metavar="PATTERN", help="Nodes or operators to leave in float; repeatable."
    ),
]
KeepFirstLast = Annotated[bool, typer.Option(help="Keep 8 bits at the network's two ends.")]
SecondInput8 = Annotated[
    bool, typer.Option("--second-input-8", help="Keep 8 bits at the second layer's input too.")
]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="One scale per weight instead of one per channel.")
]
StorageFlag = Annotated[
    Storage,
    typer.Option("--storage", help="packed: a 3-bit weight takes 3 bits. int8: plain int8 codes."),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        metavar="F",
        help="Keep calibration here, and what long methods did: an interrupted run goes on.",
    ),
]
Jobs = Annotated[
    int, typer.Option(metavar="N", min=1, help="Threads for statistics and range searches.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Same seed, same bytes.")]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="F.html", help="Write a page of plots and tables."),
]
ReportSamples = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Samples on which layers are compared; 0 for no comparison."
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="SRC", help="path.py:build, or timm:NAME. Needs torch.")
]
Weights = Annotated[
    Path | None, typer.Option(metavar="F", help="A .pth or .safetensors checkpoint.")
]
InputShape = Annotated[
    str, typer.Option("--input", metavar="1x3x224x224", help="Shape of the example input.")
]
Opset = Annotated[int, typer.Option(metavar="N", help="ONNX opset.")]
