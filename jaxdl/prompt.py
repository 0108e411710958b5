"""`predict --prompt`: a run's network goes on with a text, or tells something of it.

It asks the run alone: the checkpoint, and the tokenizer that is kept with it; the data need not be
here. Knows no family of tasks: one that generates has

    def generator(self, variables, tokenizer: Tokenizer) -> Generator

and one that tells labels, hidden words or answers

    def teller(self, variables, tokenizer: Tokenizer, data) -> Teller

One text is shown as it comes; several are generated together, and then shown one after another.
"""

import csv
import functools
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from rich.markup import escape

from jaxdl import allocator, checkpoint, compilation, decode, weights
from jaxdl.atomic import write_atomically
from jaxdl.data.tokenizers import FILE, Tokenizer, load
from jaxdl.display import console
from jaxdl.errors import UserError, shown

if TYPE_CHECKING:
    from jaxdl.cli import Command, PredictOptions

CHUNK = 16  # tokens from one look at what was generated to the next


class Generator(Protocol):
    """What goes on with a text.

    Attributes:
      limit: the most tokens that a row may have, its prompt included; None if there is none.
      apart: whether the prompt does not count among these, as the source of a translation.
      stop: tokens that end a row.
    """

    @property
    def limit(self) -> int | None: ...

    @property
    def apart(self) -> bool: ...

    @property
    def stop(self) -> tuple[int, ...]: ...

    def encode(self, text: str) -> np.ndarray:
        """The prompt's tokens, int32 [P], not none."""
        ...

    def decode(self, prompt: str, tokens: np.ndarray) -> str:
        """What is shown when these tokens came after the prompt."""
        ...

    def prompted(self, prompt: Any, length: int) -> tuple[Any, Any]:
        """(logits [B, V], cache) after prompts [B, P], -1 for none, with room for `length`."""
        ...

    def step(self, cache: Any, token: Any) -> tuple[Any, Any]:
        """(logits [B, V], cache) after one more token [B]."""
        ...

    def axes(self, cache: Any) -> Any:
        """Of each leaf of the cache the axis that counts rows."""
        ...


class Told(NamedTuple):
    """What is told of a text, or of a part of it.

    Attributes:
      of: that text or part.
      labels: what it is taken for and how probable that is, the likeliest first.
    """

    of: str
    labels: list[tuple[str, float]]


class Teller(Protocol):
    def __call__(self, texts: Sequence[str], top: int) -> list[list[Told]]:
        """What is told of each text, with the `top` likeliest labels where there is a choice."""
        ...


@dataclass(frozen=True)
class Compiled:
    """The functions of a generator, each compiled once for each shape.

    Attributes:
      generator: whose functions.
      sampling: how a token is drawn.
    """

    generator: Any
    sampling: decode.Sampling

    @functools.cached_property
    def begin(self) -> Callable[..., Any]:
        def begin(prompt: Any, length: int) -> Any:
            logits, cache = self.generator.prompted(prompt, length)
            # Of a source nothing is a part of the text that is written.
            return decode.begin(logits, cache, prompt[:, :0] if self.generator.apart else prompt)

        return jax.jit(begin, static_argnums=1)

    @functools.cached_property
    def more(self) -> Callable[..., Any]:
        return jax.jit(lambda going, keys, tokens: decode.generate(
            self.generator.step, going, keys, tokens=tokens, sampling=self.sampling,
            stop=self.generator.stop), static_argnums=2)


def chunks(compiled: Compiled, prompts: Sequence[np.ndarray], keys: Any,
           tokens: int) -> Iterator[np.ndarray]:
    """Tokens [B, n], one lot after another, until all rows have stopped or have `tokens`; -1 where
    a row has stopped.

    Where a row comes to the limit of what the network can see at once, it goes on from the last
    half of that: the first tokens are forgotten, and the cost of a token stays what it was.
    """
    limit, apart = compiled.generator.limit, compiled.generator.apart
    rows, done = list(prompts), np.zeros(len(prompts), bool)
    window = None if apart else limit
    tokens = most(compiled.generator, tokens)
    if window is not None:
        rows = [row[-(window - 1):] for row in rows]
    made = 0
    while made < tokens and not done.all():
        if not apart:  # A row that has ended shall take no room from the others.
            rows = [row[-1:] if over else row for row, over in zip(rows, done, strict=True)]
        if window is not None:
            rows = [row if len(row) < window else row[-max(window // 2, 1):] for row in rows]
        size = rounded(max(map(len, rows)), limit if window is None else window - 1)
        length = rounded((0 if apart else size) + tokens - made, limit)
        going = compiled.begin(jnp.asarray(decode.padded(rows, size)), length)
        going = going._replace(step=jnp.int32(made), done=jnp.asarray(done))
        room = length - (0 if apart else max(map(len, rows)))
        while room > 0 and made < tokens and not done.all():
            count = min(CHUNK, room, tokens - made)
            going, new = compiled.more(going, keys, count)
            new = np.asarray(new)
            rows = [np.concatenate([row, more[more >= 0]]) for row, more in zip(rows, new,
                                                                               strict=True)]
            done, made, room = np.asarray(going.done), made + count, room - count
            yield new


def most(generator: Generator, tokens: int) -> int:
    """So many tokens, or as many as an answer can have."""
    return min(tokens, generator.limit) if generator.apart and generator.limit else tokens


def rounded(size: int, limit: int | None) -> int:
    """Up to a power of two, so that few shapes are compiled, but not beyond the limit."""
    up = 1 << max(size - 1, 0).bit_length()
    return up if limit is None else min(up, limit)


def searched(compiled: Compiled, prompts: Sequence[np.ndarray], tokens: int, beams: int, best: int,
             alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, best, N], scores [B, best]) of a beam search."""
    generator, tokens = compiled.generator, most(compiled.generator, tokens)
    size = 0 if generator.apart else max(map(len, prompts))
    if generator.limit is not None and size + tokens > generator.limit:
        raise UserError(f"--beams={beams}: the prompt's {size} tokens and --tokens={tokens} are "
                        f"more than the {generator.limit} that the network sees at once.")

    @jax.jit
    def search(prompt: Any) -> Any:
        logits, cache = generator.prompted(prompt, size + tokens)
        return decode.beam_search(generator.step, cache, logits, beams=beams, tokens=tokens,
                                  stop=generator.stop, alpha=alpha, best=best,
                                  axes=generator.axes(cache))

    return jax.device_get(search(jnp.asarray(decode.padded(prompts))))


def variables_of(task: Any, run: Path, step: int) -> dict[str, Any]:
    """Of the network of a checkpoint, as nested dicts; an average where one is kept."""
    from flax import traverse_util

    from jaxdl.init_from import parameters

    _, inside = parameters(run, str(step))
    places = {place: path for path, (place, _) in inside.items()}
    try:
        found = checkpoint.arrays(run / "checkpoints", step, "|".join(map(re.escape, places)))
    except ValueError as error:
        raise UserError(f"{error}.") from error
    named = weights.network(task, {places[p]: x for p, x in found.items()})
    return traverse_util.unflatten_dict(
        {p.removeprefix("mutable/"): jnp.asarray(x) for p, x in named.items()}, sep="/")


def tokenizer_of(run: Path, task: Any) -> Tokenizer:
    """The tokenizer of a run, if it is that of its network."""
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{run}: holds no {FILE}, by which a text would become tokens.")
    tokenizer = load(path)
    known = getattr(getattr(task, "model", None), "vocabulary", None)
    if known is not None and tokenizer.size > known:
        raise UserError(f"{path}: a tokenizer of {tokenizer.size} tokens, and the network knows "
                        f"{known}: it is not the one that the network was trained with.")
    return tokenizer


def innermost(task: Any) -> Any:
    """The task that is made from no other."""
    return innermost(task.task) if hasattr(task, "task") else task


def run(command: "Command") -> int:
    """Goes on with the prompts of a command line."""
    from jaxdl import predict
    from jaxdl.cli import of_run

    options: PredictOptions = command.options
    if options.input:
        raise UserError("--prompt and --input exclude each other.")
    if options.output is not None and predict.expanded("output", options.output).exists():
        raise UserError(f"--output={options.output}: is there already, and nothing is overwritten.")
    experiment, folder = of_run(command, with_data=False)
    task = innermost(experiment.task)
    if not hasattr(task, "generator") and not hasattr(task, "teller"):
        raise UserError(f"task={type(task).__name__}: it goes on with no text; --prompt is for a "
                        "task with a method `generator(variables, tokenizer)`, as LanguageModel, "
                        "or `teller(variables, tokenizer, data)`, as SequenceClassification.")
    step, called = predict.chosen(experiment, folder, options.step)
    tokenizer = tokenizer_of(folder, task)
    allocator.keep_memory()
    compilation.keep_programs()
    variables = variables_of(experiment.task, folder, step)
    if hasattr(task, "teller"):
        console.print(f"{folder}, {called}", soft_wrap=True)
        _tell(task.teller(variables, tokenizer, experiment.data), options)
        return 0
    generator = task.generator(variables, tokenizer)
    texts = [text for text in options.prompt for _ in range(options.samples)]
    if options.beams is not None:
        texts = list(options.prompt)
        if options.samples > options.beams:
            raise UserError(f"--samples={options.samples}: a search with --beams={options.beams} "
                            "finds at most so many.")
    console.print(f"{folder}, {called}", soft_wrap=True)
    prompts = []
    for text in texts:
        try:
            prompts.append(generator.encode(text))
        except UserError as error:
            raise UserError(f"--prompt={shown(repr(text))}: {error}") from error
        limit = None if generator.apart else generator.limit
        if limit is not None and len(prompts[-1]) > limit - 1:
            console.print(f"warning: the prompt has {len(prompts[-1])} tokens, and the network "
                          f"sees {limit} at once: its beginning is forgotten", soft_wrap=True)
    sampling = decode.Sampling(
        temperature=None if options.temperature < 1e-6 else options.temperature,
        top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
        repetition_penalty=options.repetition_penalty)
    compiled = Compiled(generator, sampling)
    written = list[str]()
    if options.beams is not None:
        found, scores = searched(compiled, prompts, options.tokens, options.beams,
                                 options.samples, options.length_penalty)
        for text, rows, row_scores in zip(texts, found, scores, strict=True):
            for tokens, score in zip(rows, row_scores, strict=True):
                if score > decode.NEVER / 1e9:  # There may be fewer answers than beams.
                    written.append(generator.decode(text, tokens))
                    _show(f"{written[-1]}\n", f"score {score:.2f}")
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(options.seed), jnp.arange(len(texts)))
        written = _generated(compiled, texts, prompts, keys, options.tokens)
    if options.output is not None:
        _save(options.output, "\n\n".join(written) + "\n")
    return 0


def encoded(tokenizer: Tokenizer, text: str, least: int = 1) -> np.ndarray:
    """The tokens of a prompt, int32 [N], at least so many."""
    try:
        tokens = tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"--prompt={shown(repr(text))}: {error}") from error
    if len(tokens) < least:
        raise UserError(f"--prompt={shown(repr(text))}: expected at least one word.")
    return tokens


def fitting(text: str, tokens: np.ndarray, most: int | None) -> np.ndarray:
    """The tokens of a prompt, unless they are more than the network sees at once."""
    if most is not None and len(tokens) > most:
        raise UserError(f"--prompt={shown(repr(text))}: {len(tokens):,} tokens; the network sees "
                        f"{most:,} at once.")
    return tokens


def _tell(teller: Teller, options: "PredictOptions") -> None:
    """Shows what the network tells of each text, and writes it as a table if asked to."""
    from rich.table import Table

    table = Table("text", "label", "probability", box=None, pad_edge=False)
    rows = [("text", "label", "probability")]
    for found in teller(options.prompt, options.top):
        for of, labels in found:
            for number, (label, probability) in enumerate(labels):
                table.add_row("" if number else escape(shown(of)), escape(label),
                              f"{probability:.4f}")
                rows.append((of, label, f"{probability:.6f}"))
    console.print(table)
    if options.output is not None:
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows(rows)
        _save(options.output, lines.getvalue())


def _save(output: str, text: str) -> None:
    from jaxdl import predict

    path = predict.expanded("output", output)
    if path.exists():
        raise UserError(f"--output={output}: is there already, and nothing is overwritten.")
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror}).") from error
    console.print(f"written: {path}")


def _generated(compiled: Compiled, texts: Sequence[str], prompts: Sequence[np.ndarray], keys: Any,
               tokens: int) -> list[str]:
    """The texts, each shown."""
    parts: list[list[np.ndarray]] = [[] for _ in texts]
    shown_until, alone = 0, len(texts) == 1
    for new in chunks(compiled, prompts, keys, tokens):
        for i, row in enumerate(new):
            parts[i].append(row[row >= 0])
        if alone:
            text = compiled.generator.decode(texts[0], np.concatenate(parts[0]))
            # The last bytes may be the beginning of a character.
            end = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
            _write(text[shown_until:end])
            shown_until = max(shown_until, end)
    found = [compiled.generator.decode(text, np.concatenate([*row, np.zeros(0, np.int32)]))
             for text, row in zip(texts, parts, strict=True)]
    if alone:
        _write(found[0][shown_until:] + "\n")
    else:
        for i, text in enumerate(found):
            _show(f"{text}\n", f"{i + 1} of {len(found)}")
    return found


def _show(text: str, title: str) -> None:
    console.rule(title, style="dim")
    _write(text)


def _write(text: str) -> None:
    """In which nothing commands the terminal."""
    sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1]
                             for c in text))
    sys.stdout.flush()
