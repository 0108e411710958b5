"""The command line: every leaf of an experiment is a flag, and every error is one line."""

import ast
import contextlib
import dataclasses
import difflib
import io
import keyword
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jaxdl import allocator, config, files
from jaxdl.errors import RunError, UserError, in_callback, nearest, out_of_memory, shown
from jaxdl.process import PREEMPTED, Early, Preempted, Watchdog, leaving_at_once

if TYPE_CHECKING:
    from jaxdl.experiment import Experiment
    from jaxdl.record import Recorded

LONGEST = 2_000  # characters of an error
Seconds = Annotated[float, config.Between(0.1, 1e6)]

USAGE = """usage: {program} [MODE] --experiment=NAME|FILE|RUN_DIR [--a.b.c=value ...]

modes:
{modes}

--experiment takes a name that 'list' shows, the path of an experiment file of your own, or a run
directory. With --help after it, every leaf of that experiment is listed with its type and default:

  {program} --experiment=resnet_cifar --help
  {program} --experiment=resnet_cifar --optimizer.learning_rate.peak=0.05 --steps=2000
  {program} evaluate --experiment=runs/resnet_cifar/2026-01-31_12-00-00 --step=best"""


def program() -> str:
    """How jaxdl was started, for commands that are shown."""
    return "python launch.py" if Path(sys.argv[0]).name == "launch.py" else "jaxdl"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where to record a run, and how strict to be; not part of the experiment.

    Attributes:
      workdir: the run directory; an existing one is continued. None makes runs/NAME/DATE_TIME.
      resume: continues the newest run of this experiment.
      strict_data: refuses the stand-in where the declared data is missing.
      accept_changes: continues a run directory although the experiment, or its data, differ.
      sinks: further loggers: wandb, mlflow.
      strict_compile: ends the run where the step or an evaluator would be compiled a second time,
        for other shapes or types; otherwise that is a warning.
      profile: START:STOP traces the steps of the run from START until STOP, counted from 0, into
        its folder, and prints the costliest operations.
      preempt_grace: seconds from SIGTERM, SIGINT or SIGHUP until the process ends, however far it
        is with saving; None lets it finish.
      stuck_after: seconds without progress (a step, a batch of an evaluation, a save) after which
        the run prints where each thread stands, and ends; None: 3,600.
    """

    workdir: str | None = None
    resume: bool = False
    strict_data: bool = False
    accept_changes: bool = False
    sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    strict_compile: bool = False
    profile: str | None = None
    preempt_grace: Seconds | None = None
    stuck_after: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which checkpoint to evaluate.

    Attributes:
      workdir: the run directory, if --experiment names something else.
      step: "best", "last" or the number of a checkpoint.
    """

    workdir: str | None = None
    step: str = "last"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Which pictures to predict, by which checkpoint, and where to write what is said of them; or
    which text to go on with.

    Attributes:
      input: files, and folders that are searched through; several, as --input A B C.
      workdir: the run directory, if --experiment names something else.
      step: "best", "last" or the number of a checkpoint; None: the best, if the run has one.
      output: of pictures: a new folder to write into; None makes RUN/predictions/DATE_TIME. Of
        text: a new file; None only shows it.
      top: how many labels of a file or a text to tell, the likeliest first.
      prompt: of text: what to go on with, or to tell the label of; given several times, each by
        itself.
      tokens: how many to add at most; answers are no longer than their network can make them.
      samples: texts for each prompt.
      temperature: of the distribution that a token is drawn from; 0 takes the likeliest one.
      top_k: draws from the k likeliest tokens.
      top_p: draws from the likeliest tokens whose probabilities together reach p.
      min_p: draws from tokens at least min_p times as likely as the likeliest.
      repetition_penalty: by which the logits of tokens that are there already are divided.
      beams: searches for the likeliest texts with so many beams, in place of drawing.
      length_penalty: of that search: scores are divided by ((5 + length) / 6) ^ length_penalty.
      seed: another number, other texts.
    """

    input: tuple[str, ...] = ()
    workdir: str | None = None
    step: str | None = None
    output: str | None = None
    top: config.Size = 5
    prompt: tuple[str, ...] = ()
    tokens: config.Size = 200
    samples: config.Size = 1
    temperature: config.NonNegative = 0.8
    top_k: config.Size | None = None
    top_p: config.Fraction | None = None
    min_p: config.Fraction | None = None
    repetition_penalty: Annotated[float, config.Between(1e-6)] | None = None
    beams: config.Size | None = None
    length_penalty: config.NonNegative = 0.6
    seed: Annotated[int, config.Between(0, 2 ** 32 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which checkpoint to export, and as what.

    Attributes:
      format: "stablehlo", which jax alone runs, "onnx", or "safetensors", the parameters alone.
        None: by the end of --output, else "stablehlo".
      workdir: the run directory, if --experiment names something else.
      step: "best", "last" or the number of a checkpoint; None: the best, if the run has one.
      output: the file. None makes RUN/export/step_N.FORMAT.
      batch: how many examples the file takes at once; None: any number.
      int8: for ONNX: weights, and inputs of layers, in 8 bits, with ranges of training examples.
      names: the library by whose names safetensors go, such as torchvision; None: the first one
        that publishes weights of the model, else the names here.
      only: regex of the parameters that safetensors hold, such as "lora/.*", under their paths
        here: a file for init_from.more. None: the network, for init_from.path.
    """

    format: Literal["stablehlo", "onnx", "safetensors"] | None = None
    workdir: str | None = None
    step: str | None = None
    output: str | None = None
    batch: config.Size | None = None
    int8: bool = False
    names: str | None = None
    only: config.Regex | None = None


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """What to find out before a run.

    Attributes:
      largest_batch: also the largest batch that fits, which takes three more compilations.
      strict_data: refuses the stand-in where the declared data is missing.
    """

    largest_batch: bool = True
    strict_data: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How often to kill a run, and where to keep what is compared.

    Attributes:
      kills: how often it is killed.
      moments: another number, other moments.
      workdir: a new directory for the two runs. None makes runs/NAME/verify-resume-DATE_TIME.
    """

    kills: int = 4
    moments: int = 0
    workdir: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which trials to compare, and where to train them.

    Attributes:
      workdir: the folder of the sweep; an existing one is continued. None makes
        runs/NAME/sweep-DATE_TIME.
      resume: continues the newest sweep of this experiment.
      over: PATH=VALUE,VALUE or PATH=START:STOP, in place of the file's sweep(); given several
        times, every combination is a trial.
      seeds: repeats each trial with so many seeds, from 0.
      executor: "vmap" trains trials that differ in floats and seeds in one compiled step,
        "sequential" one by one; "auto" measures which is faster; "processes", "ray" and "slurm"
        train one trial per process.
      workers: processes, tasks or jobs at once; None: as many as there are cores (100 jobs).
      slurm: parameters of submitit, such as slurm_partition=gpu; cluster=local tries it here.
      retries: how often a trial whose process dies is begun again, where its checkpoint is.
      metric: "EVALUATOR/NAME" that ranks the trials; None for best.metric.
      mode: whether more or less of it is better; None for best.mode.
      prune: "asha" or "median" ends trials that fall behind.
      rung: steps until the first decision of it; None: the first evaluation.
      strict_data: refuses the stand-in where the declared data is missing.
      accept_changes: continues a sweep although the experiment, or its data, differ.
      sinks: further loggers of each trial: wandb, mlflow.
      preempt_grace: seconds from SIGTERM, SIGINT or SIGHUP until the process ends, however far it
        is with saving; None lets it finish.
      stuck_after: seconds without progress after which a process prints where it stands, and ends;
        None: 3,600.
    """

    workdir: str | None = None
    resume: bool = False
    over: tuple[str, ...] = ()
    seeds: config.Size | None = None
    executor: Literal["auto", "vmap", "sequential", "processes", "ray", "slurm"] = "auto"
    workers: config.Size | None = None
    slurm: tuple[str, ...] = ()
    retries: config.Count = 2
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    prune: Literal["asha", "median"] | None = None
    rung: config.Size | None = None
    strict_data: bool = False
    accept_changes: bool = False
    sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    preempt_grace: Seconds | None = None
    stuck_after: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to check, and how long.

    Attributes:
      fast: leaves out the checks that train.
      only: names of checks; all if left out.
      train_steps: of the runs that checks train, at most; None: some seconds of them.
      examples: in a batch, at most; None: 32, or fewer where their step takes seconds.
      strict_data: refuses the stand-in where the declared data is missing.
      workdir: where to write check.html. None: runs/NAME.
    """

    fast: bool = False
    only: tuple[str, ...] = ()
    train_steps: config.Size | None = None
    examples: config.Size | None = None
    strict_data: bool = False
    workdir: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where to write the page of the runs, or to serve it.

    Attributes:
      output: the file; None for RUN/report.html, of several runs report.html in this folder.
      serve: serves the page on this machine alone, made anew each time it is asked for.
      port: to serve on; 0 takes a free one.
      tsne: adds a t-SNE of the last layer to its principal components.
      experiment: the experiment file, where the run holds classes of the user's own.
    """

    output: str | None = None
    serve: bool = False
    port: Annotated[int, config.Between(0, 65_535)] = 0
    tsne: bool = False
    experiment: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Where to write the table of finished runs.

    Attributes:
      output: a file, such as RESULTS.md, in which it goes between two marks; None only prints it.
    """

    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Prints the experiment as a tree; leaves that the command line changed are marked."""


@dataclass
class Command:
    """A parsed command line.

    Attributes:
      target: what --experiment named.
      name: of the experiment.
      experiment: with the typed leaves replaced.
      typed: those leaves.
      options: of the mode.
      modules: the experiment file and modules that it uses, whose dataclasses a record may name.
      expected: the docstring of the experiment file.
      run: the run directory, if --experiment named one.
      stand_in: what stood in for what in that run, if anything did.
      original: the experiment as the file or the run has it.
      code: digests of the experiment file and of those that it uses.
      module: the experiment file, if --experiment named one.
    """

    target: str
    name: str
    experiment: "Experiment"
    typed: dict[str, Any]
    options: Any
    modules: tuple[str, ...]
    expected: str
    run: Path | None
    stand_in: str | None
    original: "Experiment"
    code: dict[str, str]
    module: types.ModuleType | None = None


def train(command: Command) -> int:
    """Trains an experiment, or continues a run."""
    from jaxdl import distributed

    with Watchdog(command.options.stuck_after, distributed.give_up) as watchdog:
        return train_watched(command, watchdog)


def train_watched(command: Command, watchdog: Watchdog) -> int:
    """The same, under a watchdog that is told of progress."""
    import jax

    from jaxdl import __version__, display, distributed, parallel, record, sinks
    from jaxdl.train import fit, splits, validate

    options: TrainOptions = command.options
    if options.resume and options.workdir:
        raise UserError("--resume and --workdir exclude each other.")
    sinks.check(options.sinks)
    folder = Path(distributed.by_leader(lambda: str(
        record.newest(command.name) if options.resume else options.workdir
        or record.new_folder(command.name))))
    distributed.by_leader(lambda: record.check_writable(folder))
    old = record.read(folder)
    experiment, stand_in = distributed.leader_first(
        lambda: with_data(command, old, options.strict_data))
    validate(experiment, parallel.arrange(experiment.mesh, experiment.rules))
    splits(experiment)
    steps = None
    if options.profile is not None:
        from jaxdl import profile
        steps = profile.parse(options.profile, experiment.steps)
    recorded = record.Recorded(command.name, config.to_json(experiment), stand_in,
                               experiment.data.fingerprint(), command.expected, command.code)
    distributed.same({"the version of jaxdl": __version__, "the version of jax": jax.__version__,
                      "the code": dict(recorded.code), "the stand-in": stand_in,
                      "the experiment": recorded.experiment, "the data": recorded.fingerprint})
    run = record.Run(
        folder, recorded, overrides=command.typed, accept_changes=options.accept_changes,
        modules=command.modules)
    display.console.print(f"{command.name} in {folder}")
    fit(experiment, run, sinks=options.sinks, profile=steps, grace=options.preempt_grace,
        watchdog=watchdog, strict_compile=options.strict_compile)
    display.console.print(f"for a page of it: {program()} report {folder}")
    return 0


def with_data(command: Command, old: "Recorded | None",
              strict: bool) -> "tuple[Experiment, str | None]":
    """(the experiment with data that is here, what stands in for what).

    Decided when a run starts, for training and evaluation together, and never again: a run that
    began on a stand-in continues on it, and one that began on its own data never changes to it.
    """
    from jaxdl import display
    from jaxdl.errors import DataMissing

    experiment = command.experiment
    if command.stand_in is not None:  # The run that --experiment names was trained on one.
        if strict:
            raise UserError(f"--strict_data: {command.run} has a stand-in ({command.stand_in}).")
        experiment.data.prepare()
        display.announce(command.stand_in, f"So it is in {command.run}.")
        return experiment, command.stand_in
    declared = getattr(experiment.data, "stand_in", None)
    reason = "The run began with it."
    if old is None or old.stand_in is None or declared is None:
        try:
            experiment.data.prepare()
            return experiment, None
        except DataMissing as error:
            if declared is None or strict or old is not None:
                raise
            reason = str(error)
    elif strict:
        raise UserError(f"--strict_data: this run began with a stand-in ({old.stand_in}).")
    assert declared is not None
    declared.data.prepare()
    text = f"{type(declared.data).__name__} in place of {type(experiment.data).__name__}"
    steps = experiment.steps if "steps" in command.typed else declared.steps
    display.announce(text, reason)
    return dataclasses.replace(experiment, data=declared.data, steps=steps), text


def evaluate(command: Command) -> int:
    """Evaluates a checkpoint of a run, and prints the table that training printed."""
    from jaxdl import display
    from jaxdl.train import evaluate as evaluate_run

    experiment, folder = of_run(command)
    step, results = evaluate_run(experiment, folder, command.options.step)
    display.console.print(f"{folder}, step {step:,}")
    display.console.print(display.metric_table(results))
    return 0


def of_run(command: Command, *, with_data: bool = True) -> "tuple[Experiment, Path]":
    """(experiment, folder) of the run that a command names; says what stood in. Unless it is asked
    for without, its data is made sure of, and told if it has changed."""
    from jaxdl import display, distributed, record

    options, folder = command.options, command.run
    if folder is not None and options.workdir is not None:
        raise UserError("--workdir goes with the name or file of an experiment, not with a run.")
    if folder is None:
        folder = Path(distributed.by_leader(lambda: str(
            options.workdir or record.newest(command.name))))
    old = record.read(folder)
    if old is None:
        raise UserError(f"--workdir={folder}: not a run directory.")
    experiment = config.replace(rebuilt(old, folder, command.modules), command.typed)
    if old.stand_in:
        display.announce(old.stand_in, "The run was trained on it.")
    if not with_data:
        return experiment, folder
    distributed.leader_first(experiment.data.prepare)
    if old.fingerprint not in (None, found := experiment.data.fingerprint()):
        display.console.print("warning: the data has changed since "
                              f"({old.fingerprint} then, {found} now)")
    return experiment, folder


def predict(command: Command) -> int:
    """Says what the network of a run makes of pictures, or goes on with a text."""
    from jaxdl import predict, prompt

    return (prompt if command.options.prompt else predict).run(command)


def export(command: Command) -> int:
    """Writes the network of a run as one file that runs without jaxdl."""
    from jaxdl import export

    return export.run(command)


def sweep(command: Command) -> int:
    """Trains many experiments that differ in named leaves, and compares them."""
    from jaxdl import study

    return study.run(command)


def preflight(command: Command) -> int:
    """Compiles the step of an experiment, and prints what it takes."""
    from jaxdl import preflight

    return preflight.run(command)


def verify_resume(command: Command) -> int:
    """Kills runs of an experiment, and compares what continues with a run that was left alone."""
    from jaxdl import resume

    return resume.verify(command)


def check(command: Command) -> int:
    """Looks for the mistakes that raise no error."""
    from jaxdl import check

    return check.run(command)


def show(command: Command) -> int:
    """Prints the experiment as a tree."""
    def lines(node: Any, was: Any, name: str, depth: int) -> Iterator[str]:
        pad = "  " * depth
        if not config.is_node(node):
            mark = "" if node == was and type(node) is type(was) else f"    <- was {was!r}"
            yield f"{pad}{name} = {node!r}{mark}"
            return
        kind = "" if isinstance(node, (tuple, Mapping)) else type(node).__name__
        yield f"{pad}{name}: {kind}".rstrip()
        for child, value in config.children(node).items():
            yield from lines(value, config.children(was).get(child), child, depth + 1)

    print("\n".join(lines(command.experiment, command.original, command.name, 0)))
    return 0


def list_experiments() -> int:
    """Prints the name and the first docstring line of every experiment."""
    found = files.experiments()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {files.summary(path)}")
    return 0


@dataclass(frozen=True)
class Mode:
    run: Callable[[Command], int]
    options: type
    help: str


MODES = {
    "train": Mode(train, TrainOptions, "train an experiment or continue a run (the default)"),
    "evaluate": Mode(evaluate, EvaluateOptions, "print the metrics of a run's checkpoint"),
    "predict": Mode(predict, PredictOptions,
                    "label pictures by a run's checkpoint, or go on with a text"),
    "export": Mode(export, ExportOptions,
                   "write the network of a run as one file that runs without jaxdl"),
    "sweep": Mode(sweep, SweepOptions,
                  "train many trials, declared by sweep() in the file or by --over, and compare "
                  "them"),
    "check": Mode(check, CheckOptions,
                  "look for the mistakes that raise no error, before the long run"),
    "preflight": Mode(preflight, PreflightOptions,
                      "compile the step, and print what it and the run will take"),
    "verify-resume": Mode(verify_resume, VerifyOptions,
                          "kill a run, continue it, and compare it bit by bit with one that was "
                          "not killed"),
    "show": Mode(show, ShowOptions, "print the experiment as a tree, changed leaves marked"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done, 1 the run failed, 2 a mistake in the command, 75 saved because the process was asked to
    leave.
    """
    allocator.keep_memory()  # before jax is imported
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)
        return status
    except UserError as error:
        return _fail(str(error), 2)
    except ImportError as error:
        return _fail(f"{error}; 'pip install --editable .' in the folder of jaxdl brings what it "
                     "needs", 2)
    except RunError as error:
        return _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if (mistake := in_callback(error)) is not None:
            return _fail(str(mistake), 2)
        if (short := out_of_memory(error)) is None:
            raise
        return _fail(str(short), 1)
    except Early as error:
        _fail(str(error), PREEMPTED)
        os._exit(PREEMPTED)  # not to wait for a thread that compiles
    except Preempted as error:
        return _fail(str(error), PREEMPTED)
    except OSError as error:
        if error.filename is None:  # It may be the output, which would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # 'list | head -1' has seen enough.
            return 128 + signal.SIGPIPE
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130


def _fail(error: str, status: int) -> int:
    """Prints one line, of a length that can be read, in which nothing commands the terminal."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(error.split()))
    more = "" if len(line) <= LONGEST else f"... ({len(line):,} characters)"
    print(("" if status == PREEMPTED else "error: ") + line[:LONGEST] + more, file=sys.stderr)
    return status


def _main(args: list[str]) -> int:
    for arg in args:
        if not config.fits(arg, str):
            raise UserError(f"{shown(repr(arg))}: {config.expected(arg, str)}.")
    mode = args.pop(0) if args and not args[0].startswith("-") else "train"
    known = [*MODES, "list", "launch", "report", "results"]
    if mode not in known:
        raise UserError(f"unknown mode '{mode}'.{nearest(mode, known)} The modes are "
                        f"{', '.join(known)}.")
    wants_help = any(a in ("--help", "-h") for a in args)
    if mode == "report":
        return report(args)
    if mode == "results":
        return results(args)
    target, rest = _take(args, "experiment")
    if target is None and wants_help:
        modes = [f"  {name:14} {m.help}" for name, m in MODES.items()]
        modes.append(f"  {'list':14} list the experiments")
        modes.append(f"  {'report':14} make a page of a run, or of several: report RUN [RUN ...]")
        modes.append(f"  {'results':14} table of what finished runs and sweeps came to")
        modes.append(f"  {'launch':14} run a mode in --processes=N processes of this machine")
        print(USAGE.format(program=program(), modes="\n".join(modes)))
        return 0
    if mode == "launch":
        return launch(args)
    if mode == "list":
        if args:
            raise UserError(f"list takes no arguments, got {shown(' '.join(args))}.")
        return list_experiments()
    if target is None:
        raise UserError("--experiment=NAME|FILE|RUN_DIR is missing; 'list' shows the names.")
    if mode in ("show", "verify-resume"):  # They are no processes of a run.
        return MODES[mode].run(parse(mode, target, rest))
    if mode == "predict":
        rest = _several(_several(_each(rest, "input"), "input"), "prompt")
    for name in ("over", "slurm") if mode == "sweep" else ():
        rest = _several(rest, name)
    with leaving_at_once() if mode in ("train", "sweep") else contextlib.nullcontext():
        from jaxdl import distributed

        with distributed.joined():
            return MODES[mode].run(parse(mode, target, rest))


def report(args: list[str]) -> int:
    """Writes one page that shows a run, or compares several, or serves it."""
    runs, flags = _words(args, ("--output", "--port", "--experiment"))
    options, _ = parse_flags({}, ReportOptions(), flags, f"{program()} report RUN [RUN ...]")
    if not runs:
        raise UserError("report: name one run directory, or several.")
    modules: tuple[str, ...] = ()
    if options.experiment is not None:
        from jaxdl import environment

        modules = tuple(environment.users(files.load(files.find(options.experiment))))
    from jaxdl import report as page

    try:
        folders = [Path(run).expanduser() for run in runs]
    except RuntimeError as error:
        raise UserError(f"report {shown(' '.join(runs))}: {error}") from error
    page.run(folders, options, modules)
    return 0


def results(args: list[str]) -> int:
    """Prints what the finished runs and sweeps in some folders came to."""
    folders, flags = _words(args, ("--output",))
    options, _ = parse_flags({}, ResultsOptions(), flags, f"{program()} results [FOLDER ...]")
    from jaxdl import results as table

    table.run([Path(os.path.expanduser(f)) for f in folders or ["runs"]],
              None if options.output is None else Path(os.path.expanduser(options.output)))
    return 0


def _words(args: list[str], valued: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(words, flags and their values); a flag of `valued` may have its value as the next word."""
    words, flags, i = [], [], 0
    while i < len(args):
        if not args[i].startswith("-"):
            words.append(args[i])
        else:
            flags.append(args[i])
            if args[i] in valued:
                flags += args[i + 1:i + 2]
                i += 1
        i += 1
    return words, flags


def launch(args: list[str]) -> int:
    """Trains or evaluates in several processes of this machine."""
    from jaxdl import distributed

    text, args = _take([a for a in args if a != "--"], "processes")
    if text is None or not re.fullmatch("0*[1-9][0-9]{0,3}", text) or int(text) > 1024:
        raise UserError(f"--processes={shown(text)}: expected a number from 1 to 1,024."
                        if text else "--processes=N is missing: how many processes to start.")
    mode, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("train", args)
    if mode not in ("train", "evaluate"):
        raise UserError(f"launch {mode}: launch takes train or evaluate.")
    target, rest = _take(rest, "experiment")
    if target is None:
        raise UserError("--experiment=NAME|FILE|RUN_DIR is missing; 'list' shows the names.")
    parse(mode, target, rest)  # A mistake is told once, here.
    return distributed.launch(int(text), args)


def _take(args: list[str], name: str, *, first: bool = False) -> tuple[str | None, list[str]]:
    """(value of --name, the other arguments); of several values the last, unless the first is asked
    for."""
    value, rest, i = None, [], 0
    while i < len(args):
        if first and value is not None:
            rest.append(args[i])
        elif args[i].startswith(f"--{name}="):
            value = args[i].split("=", 1)[1]
        elif args[i] == f"--{name}":
            if i + 1 == len(args):
                raise UserError(f"--{name} needs a value.")
            i += 1
            value = args[i]
        else:
            rest.append(args[i])
        i += 1
    return value, rest


def _each(args: list[str], name: str) -> list[str]:
    """The arguments, with `--name A B C`, as the shell writes for *, as --name=A --name=B ..."""
    found: list[str] = []
    inside = False
    for arg in args:
        if inside and not arg.startswith("-"):
            found.append(f"--{name}={arg}")
            continue
        inside = arg.partition("=")[0] == f"--{name}"
        found += [arg] if arg != f"--{name}" else []
    return found


def _several(args: list[str], name: str) -> list[str]:
    """The arguments, with the values of all --name in one tuple."""
    values: list[str] = []
    while True:
        value, rest = _take(args, name, first=True)
        if value is None:
            return [*rest, f"--{name}={tuple(values)!r}"] if values else rest
        values.append(value)
        args = rest


def rebuilt(old: "Recorded", folder: Path, modules: tuple[str, ...]) -> "Experiment":
    """The experiment that a run recorded."""
    from jaxdl.experiment import Experiment

    experiment = config.from_json(old.experiment, modules=modules)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{folder}/config.json: holds no experiment.")
    config.check(experiment)
    return experiment


def parse(mode: str, target: str, args: list[str]) -> Command:
    """The command that these arguments mean for the experiment that `target` names."""
    from jaxdl import environment

    run = stand_in = module = None
    try:
        folder = Path(target).expanduser()
        is_run = (folder / "config.json").is_file()
        is_folder = folder.is_dir() and target not in files.experiments()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--experiment={shown(target)}: {error}.") from error
    if is_run:
        from jaxdl import record

        old = record.read(folder)
        assert old is not None
        run, name, expected, modules = folder, old.name, old.expected, ()
        stand_in, experiment = old.stand_in, rebuilt(old, folder, modules)
        code = dict(old.code)
    else:
        if is_folder:
            raise UserError(f"--experiment={target}: the directory has no config.json, so it is "
                            "not a run.")
        path = files.find(target)
        module = files.load(path)
        name, expected, modules = path.stem, module.__doc__ or "", tuple(environment.users(module))
        code = environment.code(module)
        experiment = files.build(module)
    options, typed = parse_flags(experiment, MODES[mode].options(), args, f"{program()} {mode}")
    if getattr(options, "workdir", None):
        try:
            workdir = str(Path(options.workdir).expanduser())
        except RuntimeError as error:
            raise UserError(f"--workdir={options.workdir}: {error}") from error
        options = dataclasses.replace(options, workdir=workdir)
    return Command(target, name, config.replace(experiment, typed), typed, options, modules,
                   expected, run, stand_in, experiment, code, module)


# Flags. tyro parses them; it gets a dataclass made for this very experiment, in which each node is
# typed by the value that it holds.


def parse_flags(experiment: Any, options: Any, args: list[str],
                program: str) -> tuple[Any, dict[str, Any]]:
    """(the mode's options, the typed leaves of the experiment by path)."""
    import tyro

    tree = {**config.children(options), **config.children(experiment)}
    hints = {p: leaf.hint for node in (options, experiment) for p, leaf in config.leaves(node)}
    flags = list(_flags(args, hints, tree))
    tokens = [token for key, values in flags for token in (f"--{key}", *values)]
    typed_keys: set[str] | None = {key for key, _ in flags}
    if any(a in ("--help", "-h") for a in args):
        tokens, typed_keys = ["--help"], None
    mirror = _mirror(experiment, typed_keys, base=_mirror(options, typed_keys))
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed = tyro.cli(mirror, args=tokens, prog=program, use_underscores=True,
                              config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_reduce(captured.getvalue(), flags, hints)) from None
    typed = {}
    for key, _ in flags:
        value: Any = parsed
        for name in key.split("."):
            value = getattr(value, _identifier(name))
        if not config.fits(value, hints[key]):
            raise UserError(f"--{key}={shown(str(value))}: {config.expected(value, hints[key])}.")
        typed[key] = value
    names = {f.name for f in dataclasses.fields(options)}
    return (dataclasses.replace(options, **{k: v for k, v in typed.items() if k in names}),
            {k: v for k, v in typed.items() if k not in names})


def _flags(args: list[str], hints: Mapping[str, Any],
           tree: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Splits the arguments into (path, values): `--a.b=1`, `--a.b 1`, `--tuple=1,2`, `--flag`."""
    i = 0
    while i < len(args):
        if args[i] in ("--help", "-h"):
            i += 1
            continue
        if not args[i].startswith("--"):
            raise UserError(f"'{args[i]}': expected --a.b.c=value.")
        key, equals, text = args[i][2:].partition("=")
        key = key if key in hints else key.replace("-", "_")
        i += 1
        if key not in hints:
            raise UserError(f"--{key}: {_unknown(key, hints, tree)}")
        if not _is_plain(hints[key]):
            raise UserError(f"--{key}: a {config.describe(hints[key])} is set in an experiment's "
                            "file, not by a flag.")
        several = _is_tuple(hints[key])
        if equals:
            values = _items(text, hints[key]) if several else [text]
        else:
            end = i
            while end < len(args) and not re.match(r"--[A-Za-z]|-h$", args[end]):
                end += 1
            values, i = args[i:end], end
            if not values and hints[key] is bool:
                values = ["True"]
            if len(values) == 1 and several:
                values = _items(values[0], hints[key])
        if len(values) != 1 and not several:
            raise UserError(f"--{key}={shown(' '.join(values))}: expected "
                            f"{config.describe(hints[key])}.")
        yield key, values


def _unknown(key: str, hints: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    node: Any = tree
    for name in key.split("."):
        node = config.children(node).get(name)
    if config.is_node(node):
        inside = [f"--{key}.{name}" for name in config.children(node)]
        return (f"names a whole {type(node).__name__}; set what is in it: "
                f"{', '.join(inside) or 'nothing'}.")
    close = difflib.get_close_matches(key, hints, 1, 0.5) or [
        p for p in hints if p.split(".")[-1] == key.split(".")[-1]][:1]
    return f"no such field.{f' Did you mean --{close[0]}?' if close else ''}"


def _items(text: str, hint: Any) -> list[str]:
    """The items of a tuple: `1,2` or `(1, 2)`, and of words to choose from likewise, with quotes or
    without; strings, which may be regexes, as a Python tuple `("a.*", "b")` or one as it is."""
    if "str" not in config.describe(hint):
        return [v.strip(" '\"") for v in text.strip("()[]").split(",") if v.strip()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return [text] if text else []
    if not isinstance(value, (tuple, list)):
        return [text]
    return [str(x) for item in value for x in (item if isinstance(item, (tuple, list)) else [item])]


def _is_plain(hint: Any) -> bool:
    """Whether values of this type can be typed: no objects."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _is_plain(args[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return all(_is_plain(a) for a in args if a is not ...)
    return origin is typing.Literal or hint in (bool, int, float, str, type(None), None, Any)


def _is_tuple(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) is tuple or any(
        typing.get_origin(a) is tuple for a in typing.get_args(hint))


def _reduce(box: str, flags: list[tuple[str, list[str]]], hints: Mapping[str, Any]) -> str:
    """One line from tyro's framed message."""
    told = box.partition("│ ───")[0]  # What follows is help, and names other flags.
    for key, values in reversed(flags):  # Of two, the last one counts.
        if re.search(rf"--{re.escape(key)}(?![\w.])", told):
            choices = _choices(hints[key])
            close = [nearest(v, choices) for v in values if v not in choices and len(v) > 1]
            return (f"--{key}={shown(' '.join(values))}: expected {config.describe(hints[key])}."
                    f"{next(filter(None, close), '')}")
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", box).split())


def _choices(hint: Any) -> list[str]:
    """The words that a type lists."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return [str(a) for a in args]
    return [word for a in args for word in _choices(a)]


def _identifier(name: str) -> str:
    """A name of a field for what may be none: a number, "for", "top-5"."""
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return name if plain and not name.startswith("_") else f"_{name.encode().hex()}"


def _mirror(node: Any, wanted: set[str] | None, path: str = "", base: type | None = None) -> type:
    """A dataclass whose fields have the names, values and documentation of a node's children; of
    those alone that are, or hold, one of the `wanted` paths, since tyro takes its time for each."""
    import tyro

    documented = _documentation(type(node)) if wanted is None else {}
    fields: list[tuple[str, Any, Any]] = []
    for name, child in config.children(node).items():
        whole = f"{path}.{name}" if path else name
        if wanted is not None and not any(f"{w}.".startswith(f"{whole}.") for w in wanted):
            continue
        if config.is_node(child):
            kind = _mirror(child, wanted, whole)
            value = dataclasses.field(default=kind())
        else:
            hint = config.annotation(node, name)
            kind = type(child) if hint is Any else hint
            value = dataclasses.field(default=child)
        note = tyro.conf.arg(name=name, help=documented.get(name, ""))
        fields.append((_identifier(name), Annotated[kind, note], value))
    cls = dataclasses.make_dataclass(type(node).__name__, fields, frozen=True, kw_only=True,
                                     bases=(base,) if base else ())
    cls.__doc__ = (type(node).__doc__ or "").split("\n\n")[0] if dataclasses.is_dataclass(
        node) else ""
    return cls


def _documentation(cls: type) -> dict[str, str]:
    """The "Attributes:" of a class and of its bases."""
    import docstring_parser

    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] not in ("builtins", "flax", "typing"):
            parsed = docstring_parser.parse(base.__doc__ or "")
            found |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return found
