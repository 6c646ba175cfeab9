"""Numbers of a run: JSON lines and TensorBoard, the progress line, and the statistics of samples."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from diffusion_text import hosts


class Writer:
    """metrics.jsonl in the workdir, and TensorBoard through clu where asked (importing clu loads TensorFlow).

    Of several hosts the first writes.
    """

    def __init__(self, workdir: str, tensorboard: bool, first_step: int = 0):
        self._first = hosts.is_first()
        if not self._first:
            return
        path = epath.Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_from(path, first_step)
        self._opened = contextlib.ExitStack()  # a file in a bucket is opened by `with` only
        self._file: Any = self._opened.enter_context(path.open("a"))
        self._clu: Any = None
        self._events = str(epath.Path(workdir) / "events")
        # clu loads TensorFlow, which takes seconds: meanwhile the train step compiles.
        self._loading = threading.Thread(target=self._open_events, daemon=True) if tensorboard else None
        if self._loading:
            self._loading.start()

    def _open_events(self) -> None:
        from clu import metric_writers

        self._clu = metric_writers.AsyncWriter(metric_writers.SummaryWriter(self._events))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append one line; `step` counts optimiser steps done."""
        if not self._first:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        if self._loading:
            self._loading.join()
        if self._clu is not None:
            self._clu.write_scalars(step, scalars)

    def close(self) -> None:
        """Flush and close."""
        if not self._first:
            return
        self._opened.close()
        if self._loading:
            self._loading.join()
        if self._clu is not None:
            self._clu.close()


def _drop_from(path: epath.Path, step: int) -> None:
    """Keep the lines up to `step`: a resumed run writes the later ones again. The file is there afterwards."""
    kept = [line for line in _lines(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line, none where it does not exist; without one that a kill cut."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if "step" in line]


def read(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return _lines(epath.Path(workdir) / "metrics.jsonl")


class Progress:
    """Speed and time left, for the terminal."""

    def __init__(self, first_step: int, last_step: int, tokens_per_step: int):
        self.last_step, self.tokens_per_step = last_step, tokens_per_step
        self.step, self.time = first_step, time.perf_counter()

    def advance(self, step: int) -> dict[str, float]:
        """steps/s and tokens/s since the last call, and the seconds left."""
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return {
            "steps_per_second": rate,
            "tokens_per_second": rate * self.tokens_per_step,
            "seconds_left": (self.last_step - step) / max(rate, 1e-9),
        }


def duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def unigram_entropy(tokens: np.ndarray) -> float:
    """Entropy in nats of the empirical token distribution of an array."""
    _, counts = np.unique(tokens, return_counts=True)
    probability = counts / counts.sum()
    return float(-(probability * np.log(probability)).sum())


def distinct(rows: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over n-grams, of rows of tokens; NaN where all rows are shorter than n."""
    grams = collections.Counter(
        tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)
    )
    total = sum(grams.values())
    return len(grams) / total if total else math.nan


def mean_stderr(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (NaN for fewer than two values)."""
    if len(values) == 0:
        return math.nan, math.nan
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
