"""What a trained network says of files: predictions.csv, contact sheets of them, and a table.

Each picture is brought to the shape that the run's data has, and goes through the very transforms
of its evaluation. Knows no family of tasks: a task that has `probabilities(state, batch)` [B, K] is
a classifier; any other says what its answers are by a method

    def predictor(self, names: Sequence[str] | None, top: int) -> Predictor
"""

import collections
import contextlib
import csv
import datetime
import functools
import io
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from rich.table import Table

from jaxdl import allocator, checkpoint, compilation, display, distributed, parallel
from jaxdl.data.folder import SUFFIXES
from jaxdl.data.images import FORMATS, decode
from jaxdl.data.loader import in_order
from jaxdl.data.progress import progress
from jaxdl.data.source import Source
from jaxdl.display import console
from jaxdl.errors import NoRoom, RunError, UserError, nearest, shown
from jaxdl.page import clipped
from jaxdl.preflight import shapes_of
from jaxdl.train import restored, splits, structs

if TYPE_CHECKING:
    from PIL.Image import Image

    from jaxdl.cli import Command
    from jaxdl.experiment import Experiment

LARGEST = 1 << 30     # bytes of a file
LARGE = 16_000_000    # pixels from which pictures are decoded one at a time: they take memory
ROWS = 20             # of a table on the terminal
SHEET = 100           # pictures of a contact sheet
SHEETS = 10           # of which there are so many, at most


# What a task says.


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said of one file.

    Attributes:
      label: in a word or two; files are counted by it.
      probability: of it; None if there is none.
      columns: further values of its row in predictions.csv.
      remark: what else the table shows.
    """

    label: str
    probability: float | None = None
    columns: Sequence[Any] = ()
    remark: str = ""


class Predictor(Protocol):
    """How a task answers."""

    def outputs(self, state: Any, batch: Any) -> Any:
        """What is computed: arrays [B, ...]. Pure, compiled."""
        ...

    def columns(self, outputs: Any) -> Sequence[str]:
        """Names of the further columns, by the shapes of the outputs."""
        ...

    def answer(self, output: Any) -> Answer:
        """What one example's outputs say, on the host; a ValueError with the reason if nothing."""
        ...


@dataclass(frozen=True)
class Classifier:
    """The likeliest classes.

    Attributes:
      task: has `probabilities(state, batch)` [B, K].
      names: of the classes; a class without a name is told by its number.
      top: how many classes of a file to tell.
    """

    task: Any
    names: Sequence[str] | None
    top: int

    def outputs(self, state: Any, batch: Any) -> Any:
        return self.task.probabilities(state, batch)

    def columns(self, outputs: Any) -> Sequence[str]:
        places = range(2, min(self.top, outputs.shape[-1]) + 1)
        return [f"{what}_{i}" for i in places for what in ("label", "probability")]

    def answer(self, output: np.ndarray) -> Answer:
        if not np.isfinite(output).all():
            raise ValueError("the network's output for it is not finite")
        order = np.argsort(-output, kind="stable")[:self.top]
        named = [(self.name(int(i)), float(output[i])) for i in order]
        remark = "" if len(named) < 2 else f"{named[1][0]} {named[1][1]:.1%}"
        return Answer(label=named[0][0], probability=named[0][1], remark=remark,
                      columns=[value for pair in named[1:] for value in pair])

    def name(self, label: int) -> str:
        known = self.names is not None and label < len(self.names)
        return str(self.names[label]) if known and self.names is not None else str(label)


def predictor(experiment: "Experiment", top: int) -> Predictor:
    """Of the experiment's task."""
    task: Any = experiment.task
    names = getattr(experiment.data, "names", None)
    if hasattr(task, "predictor"):
        return task.predictor(names, top)
    if hasattr(task, "probabilities"):
        return Classifier(task, names, top)
    if hasattr(task, "generator"):
        raise UserError(f"task={type(task).__name__}: it goes on with a text, which is not read "
                        "from --input; --prompt=TEXT asks it.")
    raise UserError(f"task={type(task).__name__}: it cannot predict; expected a method "
                    "`probabilities(state, batch)` or `predictor(names, top)`.")


# Which files.


def found(inputs: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(pictures, other files): those named, and those in the folders named, in the order of their
    names. What is hidden is passed over."""
    if not inputs:
        raise UserError("--input=FILE_OR_FOLDER is missing: which pictures to predict.")
    pictures: list[Path] = []
    others: list[Path] = []
    for text in inputs:
        path = expanded("input", text)
        if not path.is_dir():
            pictures.append(named_picture(path, text))
            continue
        inside = sorted(files_in(path), key=lambda file: file.parts)
        mine = [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not mine:
            raise UserError(f"--input={shown(text)}: the folder holds no picture among its "
                            f"{len(inside):,} files; expected some that end in "
                            f"{', '.join(SUFFIXES)}.")
        pictures += mine
        others += [file for file in inside if file.suffix.lower() not in SUFFIXES]
    return list(dict.fromkeys(pictures)), list(dict.fromkeys(others))


def expanded(option: str, text: str) -> Path:
    """A path that was typed."""
    if not text:
        raise UserError(f"--{option}=: expected the path of a file or folder.")
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--{option}={shown(text)}: {error}.") from error
    return path


def named_picture(path: Path, text: str) -> Path:
    """A file that was named itself, if it is a picture by its name or its content."""
    if not path.exists():
        beside = os.listdir(path.parent) if path.parent.is_dir() else ()
        raise UserError(f"--input={shown(text)}: there is no such file or folder."
                        f"{nearest(path.name, beside)}")
    if not path.is_file():
        raise UserError(f"--input={shown(text)}: neither a file nor a folder.")
    if path.suffix.lower() not in SUFFIXES:
        try:
            opened(path).close()
        except Exception as error:
            raise UserError(f"--input={shown(text)}: not a picture ({why(error)}); expected a "
                            f"folder, or a file that ends in {', '.join(SUFFIXES)}.") from error
    return path


def files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder and the folders in it, links included, each folder once."""
    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}).") from error

    seen = set[tuple[int, int]]()
    for root, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        stat = os.stat(root)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not name.startswith("."))


# Reading them.


@dataclass(frozen=True)
class Read:
    """A file that was read.

    Attributes:
      path: of it.
      image: uint8 [H, W, C]; None if it cannot be read.
      reason: why it cannot.
      thumbnail: for the contact sheet, if that was asked for.
    """

    path: Path
    image: np.ndarray | None = None
    reason: str = ""
    thumbnail: "Image | None" = None


class Pictures:
    """Reads pictures as the examples of a source are before they are transformed. From any thread.

    The shorter side becomes that of the source, then the centre is cut out; what is transparent
    becomes white, 16 bits a channel become 8, colours grey where the source is; an image is turned
    as its EXIF orientation says, and of several in a file the first counts.

    Args:
      source: whose examples have "image" uint8 [H, W, 1 or 3].
      targets: names of fields that are predicted, and that a file does not have.

    Attributes:
      fields: shape and type of each field of an example.
    """

    def __init__(self, source: Source, targets: Sequence[str]) -> None:
        rows = source.read(np.zeros(1, np.int32))
        self.fields = {name: (tuple(x.shape[1:]), np.dtype(x.dtype)) for name, x in rows.items()}
        shape, dtype = self.fields.get("image", ((), None))
        if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
            kinds = ", ".join(f"{n} {t}{list(s)}" for n, (s, t) in self.fields.items())
            raise UserError("data: no pictures, which are \"image\" uint8 [H, W, 1 or 3]; an "
                            f"example has {kinds}.")
        if further := set(self.fields) - {"image", *targets}:
            raise UserError(f"data: an example also has {', '.join(sorted(further))}, which a "
                            "picture alone does not.")
        self.height, self.width, self.channels = shape
        self.one_by_one = threading.Lock()

    def __str__(self) -> str:
        kind = "grey" if self.channels == 1 else "colour"
        return f"{self.height} x {self.width}, {kind}"

    def read(self, path: Path, *, thumbnail: bool = False) -> Read:
        """The picture in a file; never raises for what is wrong with that."""
        try:
            content = content_of(path)
            with opened(io.BytesIO(content)) as header:
                width, height = header.size
            large = self.one_by_one if width * height > LARGE else contextlib.nullcontext()
            with large:
                image = self.brought(content, width, height)
                small = shown_small(content, self.width / self.height) if thumbnail else None
            return Read(path, image, thumbnail=small)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises what it likes for a broken file.
            return Read(path, reason=why(error))

    def brought(self, content: bytes, width: int, height: int) -> np.ndarray:
        """The pixels: uint8 [H, W, C]."""
        from PIL import Image

        scale = max(self.width / width, self.height / height)
        if scale * width * scale * height > 2 * (Image.MAX_IMAGE_PIXELS or LARGE):
            raise ValueError(f"{width:,} x {height:,} pixels are too narrow a picture")
        if self.height == self.width:
            return decode(content, size=self.width, channels=self.channels, upright=True)
        pixels = decode(content, size=None, channels=self.channels, upright=True)
        image = Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
        scale = max(self.width / image.width, self.height / image.height)
        size = (max(self.width, round(image.width * scale)),
                max(self.height, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        pixels = np.asarray(image.crop((left, top, left + self.width, top + self.height)))
        return pixels[..., None] if self.channels == 1 else pixels

    def batch(self, reads: Sequence[Read], start: int, size: int) -> dict[str, np.ndarray]:
        """A batch of `size` examples; its mask is 0 where there is none, or one that cannot be
        read. What is to be predicted is zero."""
        inputs = {name: np.zeros((size, *shape), dtype)
                  for name, (shape, dtype) in self.fields.items()}
        mask = np.zeros(size, np.float32)
        for i, read in enumerate(reads):
            if read.image is not None:
                inputs["image"][i], mask[i] = read.image, 1
        return {**inputs, "index": np.arange(start, start + size, dtype=np.int32), "mask": mask}


def content_of(path: Path) -> bytes:
    """A regular file, if it is not too large."""
    if not path.is_file():
        raise ValueError("there is no such file" if not path.exists() else "not a regular file")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{display.size(size)}, more than {display.size(LARGEST)}")
    return path.read_bytes()


def opened(file: Any) -> "Image":
    """The header of a picture, of one of FORMATS."""
    from PIL import Image

    return Image.open(file, formats=FORMATS)


def shown_small(content: bytes, ratio: float) -> "Image":
    """A picture for the contact sheet; what the network does not see of it is pale.

    Args:
      content: of the file.
      ratio: width by height of what the network sees.
    """
    from PIL import Image, ImageOps

    with opened(io.BytesIO(content)) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        plain = image.mode in ("L", "RGB") and "transparency" not in image.info
        small = ImageOps.exif_transpose(image).convert("RGB") if plain else Image.fromarray(
            decode(content, size=None, channels=3, upright=True))
    factor = THUMBNAIL / max(small.size)
    size = max(1, round(small.width * factor)), max(1, round(small.height * factor))
    sampling = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    small = small.resize(size, sampling, reducing_gap=None if factor > 1 else 2.0)
    width = max(1, min(size[0], round(size[1] * ratio)))
    height = max(1, min(size[1], round(size[0] / ratio)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    seen = small.crop((left, top, left + width, top + height))
    pale = Image.blend(small, Image.new("RGB", size, "white"), 0.65)
    pale.paste(seen, (left, top))
    return pale


def why(error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it begins like no known format"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"more than {most:,} pixels, as a decompression bomb has"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return clipped(printable(str(error) or type(error).__name__), 200)


def printable(text: str) -> str:
    """In which nothing commands the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# Writing.


class Output:
    """The folder that is written into. Each file is there as a whole or not at all, predictions.csv
    last; leaving it by an error, nothing is.

    Args:
      folder: new or empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, list[Path]()
        self.made: list[Path] = []  # folders, the innermost last
        self._files = contextlib.ExitStack()
        self._commit: Callable[[], None] = lambda: None

    def __enter__(self) -> "Output":
        try:
            with self.told(self.folder):
                for path in reversed((self.folder, *self.folder.parents)):
                    if not path.exists():
                        path.mkdir()
                        self.made.append(path)
                if there := next(iter(os.listdir(self.folder)), None):
                    raise UserError(f"--output={self.folder}: holds {shown(there)!r} already, and "
                                    "nothing is overwritten; name a new folder.")
        except BaseException:
            self.remove()
            raise
        return self

    def rows(self, columns: Sequence[str]) -> Callable[[Sequence[Any]], None]:
        """Begins predictions.csv; what it returns writes a row."""
        path = self.begun("predictions.csv")
        with self.told(path):
            file = self._files.enter_context(partial(path).open(
                "w", encoding="utf-8", errors="backslashreplace", newline=""))
        writer = csv.writer(file, lineterminator="\n")

        def write(row: Sequence[Any]) -> None:
            with self.told(path):
                writer.writerow(row)

        write(columns)
        self._commit = lambda: self.commit(path, file)
        return write

    def picture(self, name: str, image: "Image") -> None:
        """Writes a PNG."""
        path = self.begun(name)
        with self.told(path), partial(path).open("wb") as file:
            image.save(file, "PNG")
            self.commit(path, file)

    def begun(self, name: str) -> Path:
        """The place of a file that is to be written."""
        self.written.append(self.folder / name)
        return self.written[-1]

    def commit(self, path: Path, file: Any) -> None:
        """The file is there from now on, also after a power failure."""
        with self.told(path):
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial(path), path)

    @contextlib.contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """What goes wrong with a file, in one line."""
        try:
            yield
        except OSError as error:
            raise NoRoom(f"{path}: cannot be written ({error.strerror or error}); --output=FOLDER "
                         "names another place.") from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self._commit()
        except BaseException as failed:
            error = failed
            raise
        finally:
            with contextlib.suppress(OSError):
                self._files.close()
            if error is not None:
                self.remove()

    def remove(self) -> None:
        """Takes back all that was written."""
        for path in self.written:
            path.unlink(missing_ok=True)
            partial(path).unlink(missing_ok=True)
        for path in reversed(self.made):
            with contextlib.suppress(OSError):  # Someone else has put something there.
                path.rmdir()


def partial(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.part")


THUMBNAIL, GAP, MARGIN, ACROSS = 124, 14, 24, 10
INK, FAINT, BAR, PAPER, TRACK = "#212529", "#868e96", "#1c5fa8", "#f1f3f5", "#dee2e6"


class Sheets:
    """Draws pictures with what is said of them, SHEET on a page.

    Args:
      output: where pages are written.
      title: of each page.
      files: how many pictures may come; of so many not all are drawn.
    """

    def __init__(self, output: Output, title: str, files: int) -> None:
        self.output, self.title, self.files = output, title, files
        self.most = min(files, SHEET * SHEETS)
        self.cells: list[tuple[Image, Answer, str]] = []
        self.drawn = 0

    def add(self, thumbnail: "Image", answer: Answer, name: str) -> None:
        self.cells.append((thumbnail, answer, name))
        if len(self.cells) == SHEET:
            self.flush()

    def flush(self) -> None:
        """Writes the page."""
        if not self.cells:
            return
        first, self.drawn = self.drawn + 1, self.drawn + len(self.cells)
        name, span = "contact_sheet", f"{self.drawn:,} picture{'s' * (self.drawn > 1)}"
        if self.files > SHEET:
            name += f"_{(self.drawn - 1) // SHEET + 1:02}"
            span = f"{first:,} to {self.drawn:,} of {self.files:,} pictures"
        self.output.picture(f"{name}.png", sheet(self.cells, self.title, span))
        self.cells = []


def sheet(cells: Sequence[tuple["Image", Answer, str]], title: str, span: str) -> "Image":
    """One page: thumbnails, each above its label, a bar of the probability, and its name."""
    from PIL import Image, ImageDraw

    across = min(ACROSS, max(4, len(cells)))
    down = -(-len(cells) // across)
    width, height, head = THUMBNAIL + GAP, THUMBNAIL + 52, 44
    page = Image.new("RGB", (2 * MARGIN + across * width - GAP,
                             2 * MARGIN + head + down * height - 10), "white")
    draw = ImageDraw.Draw(page)
    large, plain, small = font(17), font(14), font(11)
    room = page.width - 2 * MARGIN
    text = fitted(title, large, room - plain.getlength(span) - 2 * GAP)
    draw.text((MARGIN, MARGIN), text, INK, large, "lt")
    draw.text((page.width - MARGIN, MARGIN + 2), span, FAINT, plain, "rt")
    for i, (thumbnail, answer, name) in enumerate(cells):
        left, top = MARGIN + i % across * width, MARGIN + head + i // across * height
        draw.rectangle((left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), PAPER)
        page.paste(thumbnail, (left + (THUMBNAIL - thumbnail.width) // 2,
                               top + (THUMBNAIL - thumbnail.height) // 2))
        below, right, part = top + THUMBNAIL + 6, left + THUMBNAIL, ""
        if answer.probability is not None:
            part = f"{answer.probability:.0%}"
            bar = below + 17
            draw.rectangle((left, bar, right - 1, bar + 2), TRACK)
            if long := round(answer.probability * THUMBNAIL):
                draw.rectangle((left, bar, left + long - 1, bar + 2), BAR)
            draw.text((right, below - 3), part, INK, plain, "ra")
        said = THUMBNAIL - (plain.getlength(part) + 6 if part else 0)
        draw.text((left, below - 3), fitted(answer.label, plain, said), INK, plain, "la")
        draw.text((left, below + 22), fitted(name, small, THUMBNAIL), FAINT, small, "la")
    return page


@functools.cache
def font(size: int) -> Any:
    """A font that knows many scripts if the machine has it, else Pillow's own."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def fitted(text: str, font: Any, width: float) -> str:
    """The text, shortened in the middle until it is not wider."""
    text = " ".join(printable(text).split())
    length = min(len(text), 200)
    shorter = text if length == len(text) else clipped(text, length)
    while length > 1 and font.getlength(shorter) > width:
        length -= 1
        shorter = clipped(text, length)
    return shorter


# The whole.


@dataclass(frozen=True)
class Network:
    """What predicts.

    Attributes:
      predictor: of the task.
      columns: of its answers.
      compiled: (state, inputs) -> outputs, for batches of one size.
      state: of the checkpoint.
      devices: where it is.
      batch_size: of each batch.
    """

    predictor: Predictor
    columns: Sequence[str]
    compiled: Any
    state: Any
    devices: parallel.Devices
    batch_size: int

    def outputs(self, inputs: Any) -> Any:
        return self.compiled(self.state, self.devices.place(inputs, self.batch_size))


def network(experiment: "Experiment", folder: Path, step: int, says: Predictor, source: Source,
            pictures: Pictures, files: int) -> Network:
    """The network of a checkpoint, compiled.

    Args:
      experiment: as recorded in the run.
      folder: the run directory; only read.
      step: of a checkpoint.
      says: the predictor of its task.
      source: whose transforms are applied.
      pictures: what is read.
      files: how many; a batch need not be larger.
    """
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    _, state = restored(experiment, folder, step, shapes_of(splits(experiment)("train")), devices)
    size = devices.round_up(min(experiment.batch_size, files))

    def outputs(state: Any, inputs: Any) -> Any:
        return says.outputs(state, source.transform(dict(inputs), jax.random.key(0)))

    example = devices.place(pictures.batch((), 0, size), size)
    lowered = jax.jit(outputs, in_shardings=(None, devices.batch),
                      out_shardings=devices.replicated).lower(state, structs(example))
    return Network(says, says.columns(lowered.out_info), lowered.compile(), state, devices,
                   size)


def evaluated(experiment: "Experiment") -> str:
    """The split whose transforms are those of an evaluation."""
    splits_ = [getattr(e, "split", None) for e in experiment.evals.values()]
    splits_ += getattr(experiment.data, "splits", ())
    return next((s for s in splits_ if isinstance(s, str) and s != "train"), "train")


def chosen(experiment: "Experiment", folder: Path, step: str | None) -> tuple[int, str]:
    """(number of the checkpoint, what it is called): if not named, the best, else the last."""
    steps = checkpoint.committed(folder / "checkpoints")
    best = checkpoint.best_step(folder / "checkpoints", steps[-1]) if steps else None
    number = checkpoint.select(folder, step or ("best" if best in steps else "last"))
    return number, f"step {number:,}{' (best)' if number == best else ''}"


def new_folder(run: Path) -> Path:
    """RUN/predictions/DATE_TIME, not in use yet."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, n = run / "predictions" / now, 1
    while folder.exists():
        n += 1
        folder = folder.with_name(f"{now}_{n}")
    return folder


def answers(net: Network, pictures: Pictures, files: Sequence[Path],
            thumbnails: int) -> Iterator[tuple[Read, Answer | str]]:
    """Each file in order, and what is said of it, or why nothing is.

    Threads read ahead, and the network computes while the next batch is read: of the files no more
    than two batches are in memory.

    Args:
      net: what predicts.
      pictures: reads.
      files: which.
      thumbnails: of how many.
    """
    def settled(reads: Sequence[Read], outputs: Any) -> Iterator[tuple[Read, Answer | str]]:
        outputs = jax.device_get(outputs)
        for i, read in enumerate(reads):
            if read.image is None:
                yield read, read.reason
                continue
            try:
                yield read, net.predictor.answer(jax.tree.map(lambda x, i=i: x[i], outputs))
            except ValueError as error:
                yield read, why(error)

    from PIL import Image

    Image.init()  # here, not in several threads at once
    with contextlib.closing(in_order(
            lambda i: pictures.read(files[i], thumbnail=i < thumbnails), len(files))) as reads:
        before: tuple[Sequence[Read], Any] = (), None
        start = 0
        while batch := list(itertools.islice(reads, net.batch_size)):
            good = any(read.image is not None for read in batch)
            outputs = net.outputs(pictures.batch(batch, start, net.batch_size)) if good else None
            yield from settled(*before)
            before, start = (batch, outputs), start + len(batch)
        yield from settled(*before)


class Results:
    """What was said: written as it comes, and what of it the terminal shows.

    Args:
      files: all of them.
      output: where it is written.
      sheets: the contact sheets.
      columns: of an answer.
    """

    def __init__(self, files: Sequence[Path], output: Output, sheets: Sheets,
                 columns: Sequence[str]) -> None:
        self.files, self.output, self.sheets = files, output, sheets
        self.columns = columns
        self.write = output.rows(["file", "label", "probability", *columns, "error"])
        try:
            self.common = os.path.commonpath([path.parent for path in files])
        except ValueError:  # Some paths are absolute, some are not.
            self.common = ""
        self.rows: list[tuple[str, ...]] = []
        self.bad: list[tuple[str, str]] = []
        self.count = 0
        self.labels = collections.Counter[str]()
        self.sums: dict[str, float] = {}  # of their probabilities, where they have any

    def add(self, read: Read, answer: Answer | str) -> None:
        """A file and its answer, or the reason why there is none."""
        name = os.path.relpath(read.path, self.common) if self.common else str(read.path)
        self.count += 1
        if isinstance(answer, str):
            self.bad.append((name, answer))
            self.write([read.path, "", "", *[""] * len(self.columns), answer])
            row = name, "-", "-", answer
        else:
            self.labels[answer.label] += 1
            known = answer.probability is not None
            if answer.probability is not None:
                self.sums[answer.label] = self.sums.get(answer.label, 0) + answer.probability
            self.write([read.path, answer.label, answer.probability if known else "",
                        *answer.columns, ""])
            row = (name, answer.label, f"{answer.probability:.1%}" if known else "-",
                   answer.remark)
            if read.thumbnail is not None:
                self.sheets.add(read.thumbnail, answer, read.path.name)
        if self.count <= ROWS or (isinstance(answer, str) and len(self.bad) <= ROWS):
            self.rows.append(row)

    def finish(self) -> None:
        """After the last file. A UserError if none could be read."""
        if not self.labels:
            which, reason = self.files[0], self.bad[0][1]
            raise UserError(f"--input={which}: cannot be predicted ({reason})." if self.count == 1
                            else f"--input: none of the {self.count:,} files can be predicted, the "
                                 f"first of them {which} ({reason}).")
        self.sheets.flush()

    def show(self) -> None:
        """The tables; a RunError that names what could not be predicted."""
        console.print(self.table())
        if left := self.count - len(self.rows):
            console.print(f"{left:,} more in predictions.csv")
        console.print()
        console.print(self.by_label())
        if (more := len(self.labels) - ROWS) > 0:
            console.print(f"{more:,} more label{'s' * (more > 1)}")
        names = [path.name for path in self.output.written if path.name != "predictions.csv"]
        pages = (f"{names[0]} to {names[-1]}" if len(names) > 1 else "".join(names))
        part = (f" (the first {self.sheets.drawn:,} pictures)" if self.sheets.drawn
                < self.labels.total() else "")
        console.print(f"\nwritten into {self.output.folder}: predictions.csv"
                      f"{f', {pages}{part}' if names else ''}")
        if self.bad:
            told = ", ".join(f"{name} ({reason})" for name, reason in self.bad[:3])
            more = f" and {len(self.bad) - 3:,} more" if len(self.bad) > 3 else ""
            raise RunError(f"{len(self.bad):,} of {self.count:,} files could not be predicted: "
                           f"{told}{more}.")

    def table(self) -> Table:
        """The first files, and others that could not be read."""
        table = Table("file", "label", "probability", "next likeliest", box=None, pad_edge=False)
        table.columns[2].justify = "right"
        for name, label, *rest in self.rows:
            table.add_row(clipped(printable(name), 40), clipped(printable(label), 24),
                          *(clipped(printable(text), 70) for text in rest))
        return table

    def by_label(self) -> Table:
        """How many files have each label, the most frequent first."""
        table = Table("label", "files", "share", "mean probability", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        order = sorted(self.labels.items(), key=lambda pair: (-pair[1], pair[0]))
        for label, count in order[:ROWS]:
            table.add_row(clipped(printable(label), 40), f"{count:,}",
                          f"{count / self.labels.total():.1%}",
                          f"{self.sums[label] / count:.1%}" if label in self.sums else "-")
        return table


def run(command: "Command") -> int:
    """Predicts files by a checkpoint of a run."""
    from jaxdl.cli import of_run

    options: Any = command.options
    if distributed.several():
        raise UserError("predict runs in one process; --mesh.data=-1 takes all devices of it.")
    files, others = found(options.input)
    experiment, folder = of_run(command)
    says = predictor(experiment, options.top)
    step, called = chosen(experiment, folder, options.step)
    allocator.keep_memory()
    compilation.keep_programs()
    split = evaluated(experiment)
    source = splits(experiment)(split)
    targets = getattr(experiment.task, "target_fields", None) or ("label", "next", "target")
    pictures = Pictures(source, targets)
    output = expanded("output", options.output) if options.output is not None else new_folder(
        folder)
    with Output(output) as out:
        with console.status("reading the checkpoint, compiling"):
            net = network(experiment, folder, step, says, source, pictures, len(files))
        console.print(f"{folder}, {called}; {len(files):,} picture{'s' * (len(files) > 1)}, "
                      f"brought to {pictures} (resized, the centre cut out)")
        if split == "train":
            console.print("warning: the data has no split but 'train', whose transforms, "
                          "augmentation included, are applied")
        if others:
            more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
            console.print(f"{len(others):,} other file{'s' * (len(others) > 1)} left out: "
                          f"{', '.join(printable(p.name) for p in others[:3])}{more}")
        results = Results(files, out, Sheets(out, f"{command.name}, {called}", len(files)),
                          net.columns)
        with progress("predicting", len(files)) as advance, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of files that are odd, but readable
            for read, answer in answers(net, pictures, files, results.sheets.most):
                results.add(read, answer)
                advance(1)
        results.finish()
    results.show()
    return 0
