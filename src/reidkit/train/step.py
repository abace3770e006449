"""One step of training: augment, forward, losses, backward, update. On a GPU it is captured once and then replayed.

A small network at batch 64 keeps a GPU busy for less time than Python needs to launch its kernels. A captured CUDA
graph launches all of a step at once.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor, nn

from reidkit.train.augment.draws import draw_numbers
from reidkit.train.learner import Learner
from reidkit.train.optimizer import clip_gradients
from reidkit.train.rounded_network import followed

_WARM_UP = 3  # steps before a capture: libraries allocate and choose in the first ones


class Step:
    """Changes the weights of a learner, one step a call.

    Args:
        learner: to be changed. What learns of it must stay the same; a backbone that is frozen or wakes up wants a new
            `Step`.
        batch: crops of one pass; a step takes `optim.accumulate` passes.
        history: steps whose losses can be kept until they are read.
        compiled: let `torch.compile` fuse what is computed.
    """

    def __init__(self, learner: Learner, *, batch: int, history: int, compiled: bool) -> None:
        self._learner = learner
        self._batch = batch
        device = learner.team.device
        # float16 asks in every step whether its gradients overflowed, and a graph cannot ask.
        self._capturing = device.type == "cuda" and learner.scaler is None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._crops: Tensor | None = None
        self._labels: Tensor | None = None
        self._history = torch.zeros(history, 1 + len(learner.criterion.names), device=device)
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._kept = 0
        self._change = torch.compile(self._changed) if compiled else self._changed
        self._losses = torch.compile(self._computed) if compiled else self._computed

    def __call__(self, crops: UInt8[Tensor, "n height width 3"], labels: Int[Tensor, " n"]) -> None:
        """Learns from crops and the rows of the classifier that they belong to."""
        if not self._capturing:
            self._run(crops, labels)
        else:
            if self._graph is None:
                self._graph = self._captured(crops, labels)
            assert self._crops is not None
            assert self._labels is not None
            self._crops.copy_(crops)
            self._labels.copy_(labels)
            self._graph.replay()
        self._kept += 1

    def read_losses(self) -> Float32[Tensor, "steps losses"]:
        """The losses of every step since they were last read, as `Criterion` gives them. Waits for the device."""
        losses = self._history[: self._kept].to("cpu", copy=True)  # the next steps write over them
        self._kept = 0
        self._row.zero_()
        return losses

    def _run(self, crops: Tensor, labels: Tensor) -> None:
        learner = self._learner
        learner.optimizer.zero_grad(set_to_none=True)
        passes = list(zip(crops.split(self._batch), labels.split(self._batch), strict=True))
        total = torch.zeros_like(self._history[0])
        for part, targets in passes:
            pixels = self._change(part, draw_numbers(len(part), learner.generator))
            taught = None
            if learner.teacher is not None:
                with self._autocast():
                    taught = learner.teacher(pixels)
            losses = self._losses(pixels, targets, taught)
            loss = losses[0] / len(passes)
            (loss if learner.scaler is None else learner.scaler.scale(loss)).backward()
            total = total + losses.detach() / len(passes)
        self._update()
        self._history.index_copy_(0, self._row, total[None])
        self._row.add_(1)

    def _update(self) -> None:
        learner = self._learner
        learned = [p for group in learner.optimizer.param_groups for p in group["params"] if p.grad is not None]
        learner.team.average(p.grad for p in learned)
        if learner.scaler is None:
            clip_gradients(learned, learner.optim.clip)
            learner.optimizer.step()
        else:
            learner.scaler.unscale_(learner.optimizer)
            clip_gradients(learned, learner.optim.clip)
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
        learner.team.average(followed(learner.model))  # each process has seen other crops
        if learner.average is not None:
            learner.average.update()

    def _changed(self, crops: Tensor, numbers: Tensor) -> Tensor:
        return self._learner.augmenter.change(crops, numbers)

    def _computed(self, pixels: Tensor, labels: Tensor, taught: Any) -> Tensor:
        learner = self._learner
        x = learner.preprocess.normalize(pixels).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            outputs = learner.model.training_outputs(x)
            return learner.criterion(outputs, labels, taught)

    def _autocast(self) -> AbstractContextManager[object]:
        arithmetic = self._learner.arithmetic
        return nullcontext() if arithmetic is None else torch.autocast(self._history.device.type, dtype=arithmetic)

    def _captured(self, crops: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        """The graph of a step; nothing is learned by making it."""
        self._crops, self._labels = crops.clone(), labels.clone()
        with _restored(self._learner, self._history, self._row):
            stream = torch.cuda.Stream(self._history.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), warnings.catch_warnings():
                # A capturable optimiser that runs outside a graph, and float32 products of the losses without TF32.
                warnings.filterwarnings("ignore", message=".*(capturable=True|TensorFloat32)")
                for _ in range(_WARM_UP):
                    self._row.zero_()
                    self._run(self._crops, self._labels)
            torch.cuda.current_stream().wait_stream(stream)
            self._learner.optimizer.zero_grad(set_to_none=True)
            self._row.zero_()
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._learner.generator)
            with torch.cuda.graph(graph):
                self._run(self._crops, self._labels)
        return graph


@contextmanager
def _restored(learner: Learner, *others: Tensor) -> Iterator[None]:
    """Undoes, in place, all that is learned within."""
    modules: list[nn.Module] = [learner.model, learner.criterion]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    tensors += [t for state in learner.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    if learner.average is not None:
        tensors += learner.average.state_dict().values()
    tensors += others
    before = [tensor.detach().clone() for tensor in tensors]
    drawn, of_torch = learner.generator.get_state(), torch.cuda.get_rng_state(learner.team.device)
    yield
    with torch.no_grad():
        for tensor, earlier in zip(tensors, before, strict=True):
            tensor.copy_(earlier)
    learner.generator.set_state(drawn)
    torch.cuda.set_rng_state(of_torch, learner.team.device)
