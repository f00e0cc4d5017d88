"""What `tune` does, without the command line: a task trained in several ways from features that are stored once, of
which the best on the validation split ships."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replaced
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from torchsnow.data import LoadedData
from torchsnow.delta.cost import GRID_WIDTH_STEP, LEAST_GRID_WIDTH, within_budget
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.io.files import write_atomically, write_csv
from torchsnow.methods.narrowed import NarrowedSnow
from torchsnow.methods.presets import PRESETS, Preset
from torchsnow.methods.snow import Snow
from torchsnow.pooling import num_pooled
from torchsnow.source import Source
from torchsnow.train import FitResult, Method, RunFolder, Stopped, TaskRun, fit_tasks
from torchsnow.train.batches import data_config, epoch_seed, plain_images
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.fit import fit_stored, store_features
from torchsnow.train.history import Epoch, best_epoch
from torchsnow.train.store import FeatureStore
from torchsnow.workflows.place import Place, Training
from torchsnow.workflows.recipe import LEAST_PATIENCE, Recipe
from torchsnow.workflows.training import (
    TrainedTask,
    complete,
    prepared,
    put_stage,
    silent,
    split_of,
    validate_run,
    warn,
)

TABLE_FILE, TRIALS_FOLDER = "trials.csv", "trials"
UNFINISHED, FINISHED, PRUNED, DIVERGED = "unfinished", "finished", "stopped early", "diverged"
_STATES = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, DIVERGED: TrialState.FAIL}
_WIDTHS = (0.5, 0.75, 1.0)  # times the greatest that the preset's budget allows
_STEPS = 10  # of a trial, however many epochs it has: there it is compared with others
_AT_RANDOM, _WHOLE, _WARMUP_STEPS = 5, 2, 2  # trials until the sampler learns, trials and steps until one is stopped


@dataclass
class Trial:
    """One trial: what was drawn (`params`), what that means, and what came of it.

    `accuracy` is that of `best_epoch`, which would ship, on the validation split, and `accuracies` are those at each
    tenth of the epochs.
    """

    number: int
    params: dict[str, Any]
    state: str = UNFINISHED
    channels: int = 0
    grid_width: int = 0
    epochs: int = 0
    lr: float = 0.0
    best_epoch: int = 0
    accuracy: float = 0.0
    seconds: float = 0.0
    accuracies: dict[int, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The same for a table, as plain JSON values."""
        others = {name: value for name, value in asdict(self).items() if name not in ("number", "params", "accuracies")}
        return {"trial": self.number, **others}

    def take(self, history: Sequence[Epoch], num_images: int) -> None:
        """Take what is known after some epochs, measured on so many validation images."""
        best = best_epoch(history, num_images)
        self.best_epoch, self.accuracy = best.epoch, best.val_accuracy
        self.seconds = round(sum(row.seconds for row in history), 1)
        # the first epoch at or after each tenth
        self.accuracies = {_STEPS * row.epoch // self.epochs: row.val_accuracy for row in reversed(history)}

    def frozen(self, space: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
        """The same for Optuna, once it has ended."""
        return optuna.trial.create_trial(
            state=_STATES[self.state],
            value=self.accuracy if self.state == FINISHED else None,
            params=self.params,
            distributions=dict(space),
            intermediate_values=self.accuracies,
        )


@dataclass(frozen=True)
class TunedTask:
    """What ships, and all trials; `winner` is the number of the one that ships, 0 for the recipe as it was."""

    task: TrainedTask
    trials: Sequence[Trial]
    winner: int

    def summary(self) -> dict[str, Any]:
        """The main figures as plain JSON values."""
        return {**self.task.summary(), "winner": self.winner, "trials": [trial.row() for trial in self.trials]}


def validate_tunable(recipe: Recipe) -> None:
    """Raise TrainingError for a recipe that is not of a grid delta, or stores no features."""
    grids = [name for name, preset in PRESETS.items() if preset.budget is not None]
    if recipe.method != "snow" or recipe.preset not in grids:
        raise TrainingError(
            f"tune searches the body of a grid delta: the method 'snow' with the preset {' or '.join(grids)}, not "
            f"{recipe.method!r} with {recipe.preset!r}"
        )
    if recipe.settings.store_bytes == 0:
        raise TrainingError("tune trains all trials from stored features: give --store-mb more than 0")


def validate_study(run: RunFolder, resume: bool) -> None:
    """Raise TrainingError for a study in the run folder; with `resume`, for none."""
    there = run.study.exists()
    if there and not resume:
        raise TrainingError(f"{run.path} holds a study already: resume it (--resume), or choose another folder")
    if resume and not there:
        raise TrainingError(f"there is no study to resume in {run.path}; start one there first")


def tune_task(
    data: LoadedData,
    name: str,
    run: RunFolder,
    recipe: Recipe,
    hub: Place,
    num_trials: int,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
) -> TunedTask:
    """Train one task in several ways, and add the best on the validation split to a hub.

    Trial 0 is the recipe itself, and ships unless another is better by more than a standard error. What leads is in the
    hub meanwhile; the test split is looked at in the end, for what ships. After `recipe.time_s` seconds no trial but
    the first goes on. A resumed study repeats no trial that has ended, and may have more of them than it had.

    Raises what `torchsnow.workflows.training.train_task` raises, and TrainingError for another study in the folder.
    """
    start_s, tell = time.monotonic(), say or silent
    validate_tunable(recipe)
    validate_study(run, resume)
    validate_run(name, hub.path, run, resume=resume, replace=hub.replace)
    recipe = recipe.for_source(hub.source)
    with run.owned():
        splits, former = split_of(name, data, run, recipe, hub, resume=resume, say=tell)
        task = prepared(name, splits, run, recipe, hub.source, resume=False, say=tell)
        pool = plain_images(hub.source.input_config, task.settings.framing)
        recipe = replaced(recipe, settings=task.settings, chosen=task.chosen)
        assert isinstance(task.method, Snow)
        study = _Study(Training(name, data.name, splits, run, recipe, pool, former), hub, tell, task.method.spec)
        study.open()
        warn(data, study.training, None if resume else hub.source, tell)
        study.go_on(num_trials, math.inf if recipe.time_s is None else start_s + recipe.time_s)
        result = complete(*study.leading(), hub, start_s)
        return TunedTask(result, study.trials, study.leader.number)


class _Study:
    """The trials of a training. Its run folder has what it resumes from, as `TABLE_FILE` the same for people, and in
    `TRIALS_FOLDER` a run folder for each trial."""

    def __init__(self, training: Training, hub: Place, say: Callable[[str], None], default: DeltaSpec) -> None:
        self.training, self.hub, self.say = training, hub, say
        self.recipe, self.run, self.splits = training.recipe, training.run, training.splits
        preset, settings = PRESETS[self.recipe.preset], self.recipe.settings
        self.specs = _specs(default, preset, hub.source)
        self.base = Snow(hub.source, next(iter(self.specs.values())), preset.pools, settings.seed)
        self.space = _space(self.recipe, list(self.specs))
        given = {"pool_divisor": default.pool_divisor, "width": 1.0, "epochs": settings.epochs, "lr": settings.lr}
        self.trials = [Trial(0, {name: given[name] for name in self.space})]

    @property
    def leader(self) -> Trial:
        """What would ship now."""
        return leader_of(self.trials, len(self.splits.val))

    def open(self) -> None:
        """Read the study in the folder, if there is one. Raises TrainingError for another one, or a damaged one."""
        config: dict[str, Any] = {"method": self.base.config(), "training": self.recipe.settings.to_dict()}
        config |= {"data": data_config(self.splits), "searched": list(self.space)}
        self.config = json.loads(json.dumps(config, allow_nan=False))  # as it will be read back
        path = self.run.study
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.trials = [Trial(**one) for one in kept["trials"]]
            for trial in self.trials:
                trial.accuracies = {int(step): value for step, value in trial.accuracies.items()}
            then = Checkpoint(kept["config"], {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(f"{path} is damaged ({error}); start the study again") from error
        then.validate_same_config(self.config, self.run.path)

    def go_on(self, num_trials: int, deadline_s: float) -> None:
        """Make the trials that are still to be made, one after another, with one look at the images for all."""
        done = sum(trial.state != UNFINISHED for trial in self.trials)
        if done >= num_trials:
            return
        settings, pool = self.recipe.settings, self.training.pool
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        stored = store_features(TaskRun(self.base, self.splits, settings, self.run, pool), quiet=self.say is silent)
        self.splits.save(self.run.splits)
        for number in range(done, num_trials):
            if number and time.monotonic() > deadline_s:
                return
            asked = self._ask(number)
            if number == len(self.trials):
                self.trials.append(Trial(number, asked.params))
            self._make(self.trials[number], asked, stored, deadline_s)
            self._write()
            line = f"trial {number}{'' if number else ', the default'}: {described(self.trials[number])}"
            self.run.log(line)
            self.say(line)

    def leading(self) -> tuple[Training, Method, FitResult]:
        """The training that leads, put into the study's own folder as if it were the only one; its method and
        result."""
        for path in self._folder(self.leader).path.iterdir():
            if path.suffix in (".yaml", ".csv", ".safetensors"):
                write_atomically(self.run.path / path.name, path.read_bytes(), TrainingError)
        recipe = self._recipe(self.leader)
        learner = recipe.learner(self.hub.source, len(self.splits.classes))
        training = replaced(self.training, recipe=recipe)
        task = TaskRun(learner, self.splits, recipe.settings, self.run, training.pool, recipe.chosen)
        (result,) = fit_tasks([task], resume=True, quiet=True)
        assert isinstance(result, FitResult)
        return training, learner, result

    def _ask(self, number: int) -> optuna.Trial:
        """The next trial, by all that have ended and its number alone: a resumed study draws what it would have."""
        seed = epoch_seed(self.recipe.settings.seed, number)
        sampler = optuna.samplers.TPESampler(n_startup_trials=_AT_RANDOM, seed=seed)
        pruner = optuna.pruners.MedianPruner(_WHOLE, _WARMUP_STEPS)
        study = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize")
        study.add_trials([trial.frozen(self.space) for trial in self.trials[:number]])
        if number < len(self.trials):
            study.enqueue_trial(self.trials[number].params)
        return study.ask(self.space)

    def _make(
        self, trial: Trial, asked: optuna.Trial, stored: tuple[FeatureStore, FeatureStore], deadline_s: float
    ) -> None:
        """Train one trial, or go on with it, until it ends or there is no time."""
        recipe, run = self._recipe(trial), self._folder(trial)
        method = NarrowedSnow(self.base, replaced(self.base.spec, **recipe.changes))
        trial.epochs, trial.lr, trial.accuracies = recipe.settings.epochs, recipe.settings.lr, {}
        trial.channels = num_pooled(self.hub.source.num_chs, recipe.changes["pool_divisor"])
        trial.grid_width = recipe.changes["grid_width"]
        self._write()
        put = partial(put_stage, replaced(self.training, recipe=recipe), self.hub, say=self.say)
        on_start = None if trial.number else partial(put, what="usable now")
        run.on_epoch = partial(self._watch, trial, asked, deadline_s)
        task = TaskRun(method, self.splits, recipe.settings, run, self.training.pool, recipe.chosen, on_start=on_start)
        try:
            best = fit_stored(task, stored)
            trial.state = FINISHED
            if self.leader is trial:
                put(best(), what="the best so far")
        except Stopped as stop:
            if trial.number == 0 and (best_so_far := stop.best_so_far[0]) is not None:
                put(best_so_far(), what="the best so far")
            raise
        except optuna.TrialPruned:
            pass
        except DivergedError:
            if trial.number == 0:
                raise
            trial.state = DIVERGED

    def _watch(self, trial: Trial, asked: optuna.Trial, deadline_s: float, history: Sequence[Epoch]) -> None:
        """After each epoch. Raises TrialPruned, but for the first trial, for one that shall not go on."""
        known = set(trial.accuracies)
        trial.take(history, len(self.splits.val))
        for step in sorted(set(trial.accuracies) - known):
            asked.report(trial.accuracies[step], step)
        if trial.number and asked.should_prune():
            trial.state = PRUNED
        if trial.number and (trial.state == PRUNED or time.monotonic() > deadline_s):
            raise optuna.TrialPruned

    def _recipe(self, trial: Trial) -> Recipe:
        """How a trial is trained."""
        drawn, spec = dict(trial.params), self.specs[trial.params["pool_divisor"]]
        assert spec.grid_width is not None
        width = GRID_WIDTH_STEP * round(drawn.pop("width") * spec.grid_width / GRID_WIDTH_STEP)
        changes = {name: getattr(spec, name) for name in ("pool_divisor", "head_divisor", "head_bits")}
        changes["grid_width"] = max(width, LEAST_GRID_WIDTH)
        settings: dict[str, Any] = {name: drawn[name] for name in ("epochs", "lr") if name in drawn}
        if "epochs" in drawn and "patience" in self.recipe.chosen:
            settings["patience"] = max(LEAST_PATIENCE, drawn["epochs"] // 3)
        why = dict.fromkeys(settings if trial.number else (), f"trial {trial.number} of a study")
        drawn_settings, chosen = replaced(self.recipe.settings, **settings), {**self.recipe.chosen, **why}
        return replaced(self.recipe, settings=drawn_settings, auto=(), chosen=chosen, changes=changes)

    def _folder(self, trial: Trial) -> RunFolder:
        return RunFolder(self.run.path / TRIALS_FOLDER / str(trial.number))

    def _write(self) -> None:
        kept = {"config": self.config, "trials": [asdict(trial) for trial in self.trials]}
        write_atomically(self.run.study, json.dumps(kept, indent=1, allow_nan=False) + "\n", TrainingError)
        rows = [trial.row() for trial in self.trials]
        write_csv(self.run.path / TABLE_FILE, list(rows[0]), [list(row.values()) for row in rows], TrainingError)


def leader_of(trials: Sequence[Trial], num_images: int) -> Trial:
    """The finished trial with the highest accuracy, on so many validation images, if that is above the first one's by
    more than a standard error; else the first."""
    best = max((trial for trial in trials if trial.state == FINISHED), key=lambda trial: trial.accuracy)
    error = (best.accuracy * (1 - best.accuracy) / num_images) ** 0.5
    return best if best.accuracy > trials[0].accuracy + error else trials[0]


def described(trial: Trial) -> str:
    """A trial in words."""
    what = f"{trial.channels} channels, width {trial.grid_width}, {trial.epochs} epochs, lr {trial.lr:.2g}"
    came = f"{trial.accuracy:.1%} on validation, of epoch {trial.best_epoch}"
    return f"{what}: {came}{'' if trial.state == FINISHED else f' ({trial.state})'}"


def _specs(default: DeltaSpec, preset: Preset, source: Source) -> dict[int, DeltaSpec]:
    """The widest deltas that a preset's budget allows, by `pool_divisor`: for twice the channels of the default, for as
    many, and for half. All have the head of the default."""
    assert preset.budget is not None
    most = replaced(default, grid_width=preset.shape["grid_width"])
    twice, half = default.pool_divisor // 2, 2 * default.pool_divisor
    more, fewer = (
        within_budget(source, replaced(most, pool_divisor=divisor), preset.budget) for divisor in (twice, half)
    )
    return {twice: more, default.pool_divisor: default, half: fewer}


def _space(recipe: Recipe, divisors: Sequence[int]) -> dict[str, BaseDistribution]:
    """What is searched; epochs and learning rate only where they were not given."""
    settings = recipe.settings
    space: dict[str, BaseDistribution] = {
        "pool_divisor": CategoricalDistribution(divisors),
        "width": CategoricalDistribution(_WIDTHS),
    }
    if "epochs" in recipe.auto:
        least = max(settings.epochs // 3, settings.warmup_epochs + 1)
        space["epochs"] = IntDistribution(least, 2 * settings.epochs, log=True)
    if "lr" in recipe.auto:
        space["lr"] = FloatDistribution(settings.lr / 5, 5 * settings.lr, log=True)
    return space
