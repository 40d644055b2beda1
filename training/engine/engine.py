"""The training loop of every method, on accelerate: one process or many, exact resume, samples, trained files."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from .average import Average
from .batches import SKIPPED, MicroBatches, micro_batches
from .checkpoints import (
    Checkpoint,
    CheckpointError,
    local,
    newest_checkpoint,
    prune,
    restore_optimizer,
    set_aside,
    spread,
    whole,
    write_checkpoint,
)
from .draws import Draws
from .grids import grid, psnr
from .lock import holding, require_free
from .method import Batch, Method
from .optimizers import TurnOptimizer
from .records import Records

VALIDATION = 2**40
"""Number of the draws that validation restores with: no micro-batch has it."""
FREE_TO_CHANGE = ("out", "steps", "log", "validation", "checkpoints", "workers", "threads", "compile")
"""Settings whose change between two parts of a run does not change what it computes until then."""


ADVICE = "Lower optimizer.learning_rate or lengthen schedule.warmup, and start the same command again."


class Diverged(ArithmeticError):
    """A loss, gradient or weight that is no number; no sound checkpoint gives way to it."""


class Engine:
    """A run: the method, wrapped for the devices there are, its optimizers, and the number of steps taken."""

    def __init__(self, method: Method[Any], accelerator: Accelerator | None = None):
        """Builds the method and resumes `config.out` where it holds a run.

        Raises ValueError for settings that cannot work together, CheckpointError for damaged checkpoints, and InUse
        for a folder that another process trains in.
        """
        self.method, self.config = method, method.config
        config = self.config
        self.accelerator = accelerator or make_accelerator(method)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "several optimizers and frozen parts do not go through DeepSpeed: launch with FSDP2 or DDP"
            )
        if self.accelerator.is_fsdp2 and config.optimizer.name == "prodigy":
            raise ValueError(
                "Prodigy's state does not go through FSDP2: launch with DDP, or set optimizer.name to adamw"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.accelerator.is_main_process:
            require_free(config.out)
        self.folder = config.out / "checkpoints"
        saved = newest_checkpoint(self.folder, self.accelerator.print)
        method.build(self.accelerator.device)
        self.inner: nn.Module = method.network
        if config.compile:
            self.inner.compile()
        self.network = wrapped(self.accelerator, self.inner)
        self.turns = sorted(method.all_turns())
        self.trained = {name: value for name, value in self.inner.named_parameters() if value.requires_grad}
        self.average = None if config.ema is None else Average(self.trained, config.ema)
        self.optimizers = {
            turn: TurnOptimizer(config.optimizer, config.schedule, method.parameter_groups(turn)) for turn in self.turns
        }
        self.step = 0
        self.saved_step = -1
        if saved is not None:
            self.resume(saved)

    # --- state ---------------------------------------------------------------------------------------------------

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint. Raises CheckpointError when it belongs to another network or optimizer."""
        expected = {name: tuple(value.shape) for name, value in self.trained.items()}
        found = {name: tuple(value.shape) for name, value in saved.network.items()}
        if expected != found:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise CheckpointError(
                f"{self.folder} holds a run of another network: {len(odd)} tensors differ, {odd[0]} among them "
                f"({found.get(odd[0])} there, {expected.get(odd[0])} here). Set `out` to a new folder, or use the "
                "settings of that run."
            )
        optimizer = saved.config.get("optimizer", {}).get("name")
        if optimizer != self.config.optimizer.name:
            raise CheckpointError(
                f"{self.folder} holds a run with the optimizer {optimizer}, not {self.config.optimizer.name}: keep "
                "`optimizer.name`, or set `out` to a new folder"
            )
        self.warn_of_changes(saved.config)
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(spread(saved.network[name], value))
        if self.average is not None and saved.average is not None:
            self.average.load({name: spread(value, self.trained[name]) for name, value in saved.average.items()})
        for turn, states in saved.optimizers.items():
            optimizers = self.optimizers[turn].optimizers if turn in self.optimizers else []
            for optimizer, state in zip(optimizers, states, strict=True):
                restore_optimizer(optimizer, state)
        self.step = self.saved_step = saved.step
        self.accelerator.print(f"going on from step {self.step} of {self.folder}")

    def warn_of_changes(self, before: dict[str, Any]) -> None:
        now = self.config.model_dump(mode="json")
        changed = [key for key in now if key not in FREE_TO_CHANGE and now[key] != before.get(key, now[key])]
        if changed:
            self.accelerator.print(f"changed since the checkpoint: {', '.join(changed)}; the run goes on with the new")

    def save(self) -> None:
        """Write a checkpoint, and the files for the nodes. Collective: every process calls it.

        Raises Diverged, and writes nothing, when a weight is no number.
        """
        if self.saved_step == self.step:
            return
        self.check_weights()
        keep = self.accelerator.is_main_process  # a copy for each process of a machine would fill its memory
        checkpoint = Checkpoint(
            self.step,
            self.config.model_dump(mode="json"),
            whole(dict(self.trained), keep),
            None if self.average is None else whole(self.average.values, keep),
            {
                turn: [whole(part.state_dict(), keep) for part in made.optimizers]
                for turn, made in self.optimizers.items()
            },
        )
        if keep:
            # Steps were taken since the last one was written, so its state is sound. The new one's is not known yet.
            prune(self.folder, self.saved_step, max(1, self.config.checkpoints.keep - 1))
            write_checkpoint(self.folder, checkpoint)
            if self.config.checkpoints.export or self.step == self.config.steps:
                self.export(checkpoint.network if checkpoint.average is None else checkpoint.average)
        self.saved_step = self.step
        self.accelerator.wait_for_everyone()

    def check_weights(self) -> None:
        """Raises Diverged, in every process, when a weight or its average is no number in any."""
        averaged = {} if self.average is None else self.average.values
        odd = [
            name
            for name, value in (*self.trained.items(), *averaged.items())
            if not bool(local(value.detach()).isfinite().all())
        ]
        if self.any_process(bool(odd)):
            name = odd[0] if odd else "a weight on another device"
            raise Diverged(f"after step {self.step} {name} holds values that are no numbers. {ADVICE}")

    def export(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the files for the nodes. Raises OSError when the disk is full."""
        try:
            written = self.method.export(self.config.out, tensors, self.step)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"cannot write the files for the nodes to {self.config.out}: {error}. The checkpoint of step "
                f"{self.step} is whole: the same command goes on from it."
            ) from error
        if self.step >= self.config.steps:
            tqdm.write("\n".join(f"for the nodes: {path}" for path in written))

    def finish(self) -> None:
        """For a run that has all its steps: write the files for the nodes, in case it was killed before it did."""
        keep = self.accelerator.is_main_process
        tensors = whole(dict(self.trained) if self.average is None else self.average.values, keep)
        if keep:
            self.export(tensors)

    # --- a step --------------------------------------------------------------------------------------------------

    def train_step(self, parts: list[tuple[int, Batch]]) -> dict[str, float]:
        """Take this step's turns on the process's (number, collated micro-batch) pairs. Returns what the log takes."""
        prepared = []
        for number, batch in parts:
            draws = Draws(self.config.seed, number, self.accelerator.device)
            with torch.no_grad():
                prepared.append((number, self.method.prepare(batch, draws), draws))
        figures: dict[str, float] = {}
        turns = self.method.turns(self.step)
        for turn in turns:
            prefix = f"{turn}/" if len(self.turns) > 1 else ""
            figures.update({f"{prefix}{name}": value for name, value in self.take_turn(turn, prepared).items()})
        if self.average is not None:
            self.average.update(self.step)
        self.method.after_step(self.step)
        self.step += 1
        return figures

    def take_turn(self, turn: str, prepared: list[tuple[int, Batch, Draws]]) -> dict[str, float]:
        """Accumulate a turn's gradients and take its step. Raises Diverged when they are no numbers."""
        sums: dict[str, Any] = {}
        optimizer = self.optimizers[turn]
        with frozen(self.parameters_of_others(turn)):
            for index, (number, batch, draws) in enumerate(prepared):
                torch.manual_seed(global_seed(self.config.seed, number, turn))
                last = index == len(prepared) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                    losses = self.network(turn, batch, draws)
                    self.accelerator.backward(losses["loss"] / len(prepared))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0) + value.detach().float() / len(prepared)
        norm = self.clip(optimizer.parameters)
        means = self.mean_of_processes(dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)))
        loss = means["loss"]
        if not math.isfinite(norm) or not math.isfinite(loss):
            raise Diverged(
                f"step {self.step + 1}: the {turn} loss is {loss}, the norm of its gradient {norm}. Nothing of this "
                f"step was kept. {self.retreat()}{ADVICE}"
            )
        rate = optimizer.step(self.step, self.config.steps)
        return {**means, "gradient_norm": norm, "learning_rate": rate}

    def mean_of_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """Each figure's mean over all processes; one that a process does not have counts 0 there."""
        if self.accelerator.num_processes == 1:
            return figures
        found = gather_object([figures])
        names = dict.fromkeys(name for each in found for name in each)
        return {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in names}

    def retreat(self) -> str:
        """Set aside a checkpoint of exactly this state, which has just been seen to be unsound. Returns what it did."""
        if self.saved_step != self.step:
            return ""
        aside = set_aside(self.folder, self.step) if self.accelerator.is_main_process else None
        return "" if aside is None else f"The checkpoint before it is now {aside.name}; an older one is left. "

    def parameters_of_others(self, turn: str) -> list[nn.Parameter]:
        """What other turns train and this one does not."""
        own = {id(parameter) for parameter in self.optimizers[turn].parameters}
        others = [optimizer.parameters for name, optimizer in self.optimizers.items() if name != turn]
        return [parameter for parameters in others for parameter in parameters if id(parameter) not in own]

    def clip(self, parameters: list[nn.Parameter]) -> float:
        """The norm of the gradient before it is scaled down to `gradient_clip`."""
        limit = self.config.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        return float(whole(norm))

    # --- the run -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until `config.steps`, or until Ctrl-C or SIGTERM, which save a checkpoint first."""
        config, accelerator = self.config, self.accelerator
        config.out.mkdir(parents=True, exist_ok=True)
        with holding(config.out) if accelerator.is_main_process else contextlib.nullcontext():
            self.train_to_the_end()
        accelerator.end_training()

    def train_to_the_end(self) -> None:
        config, accelerator = self.config, self.accelerator
        images = config.batch * config.accumulate * accelerator.num_processes
        records = Records(accelerator, config.out, self.step, config.steps, config.log.every, images)
        source = micro_batches(
            MicroBatches(self.method),
            self.step,
            config.steps,
            config.accumulate,
            accelerator.process_index,
            accelerator.num_processes,
            config.workers,
        )
        validation, first = self.method.validation(), self.step
        with contextlib.closing(records), stop_signals() as stopped:
            for parts in source:
                for _, batch in parts:
                    records.skip(batch.pop(SKIPPED))
                records.step(self.step + 1, self.train_step(parts))
                stop = self.should_stop(bool(stopped))
                if stop or self.step % config.checkpoints.every == 0 or self.step == config.steps:
                    self.save()
                # After the checkpoint, which is whole then even where the validation asks for too much memory.
                if validation is not None and self.step % config.validation.every == 0:
                    self.validate(validation, records)
                if stop:
                    records.say(f"stopped at step {self.step}; the same command goes on from here")
                    break
        if self.step >= config.steps and self.saved_step == first:
            self.finish()

    def should_stop(self, asked: bool) -> bool:
        """Whether any process was asked to stop."""
        return self.any_process(asked)

    def any_process(self, found: bool) -> bool:
        """Whether any process found so."""
        if self.accelerator.num_processes == 1:
            return found
        flag = torch.tensor(float(found), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def validate(self, batch: Batch, records: Records) -> None:
        """Restore the validation images with the average, or the weights where there is none."""
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_place()
        draws = Draws(self.config.seed, VALIDATION, self.accelerator.device)
        with evaluating(self.inner), torch.no_grad(), self.accelerator.autocast(), averaged:
            restored = self.method.restore(batch, draws).float().cpu()
        columns = [batch["lq"], restored]
        figures = self.method.measure(batch, restored)
        if "hq" in batch:
            figures = {"psnr": psnr(restored, batch["hq"]), "psnr_lq": psnr(batch["lq"], batch["hq"]), **figures}
            columns.append(batch["hq"])
        records.log(self.step, {f"validation/{name}": value for name, value in figures.items()})
        records.picture(self.step, "restored", grid(columns))


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode within, and in its own mode after."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters that ask for no gradient within."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def wrapped(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """The network for the devices there are.

    With FSDP2 accelerate takes a model only with an optimizer, whose parameters it exchanges for shards: it gets one
    that takes no step, because the run's own are made of the shards afterwards.
    """
    if not accelerator.is_fsdp2:
        return accelerator.prepare(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return accelerator.prepare(network, torch.optim.SGD(trained, lr=0.0))[0]


def accelerator_available() -> bool:
    """Whether torch has a GPU or the like; torch 2.6 can say so of any kind."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def make_accelerator(method: Method[Any]) -> Accelerator:
    """As the launch configuration says, with the run's precision and trackers."""
    config = method.config
    kwargs = []
    if len(method.all_turns()) > 1:
        from accelerate import DistributedDataParallelKwargs

        kwargs.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    accelerator = Accelerator(
        cpu=not accelerator_available(),
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        log_with=list(config.log.trackers) or None,
        project_dir=str(config.out),
        kwargs_handlers=kwargs,
    )
    missing = set(config.log.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    for name in sorted(missing):
        accelerator.print(f"log.trackers names {name}, which is not installed: pip install {name}; going on without")
    if config.log.trackers:
        accelerator.init_trackers(config.log.project)
    return accelerator


def global_seed(seed: int, number: int, turn: str) -> int:
    """For what draws from torch's own generator, such as dropout."""
    words = (seed, number, *turn.encode())
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that a first Ctrl-C or SIGTERM goes into; a second one ends the process as usual."""
    caught: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's there
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
