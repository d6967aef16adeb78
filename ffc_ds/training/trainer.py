"""A run from its settings to its results: the loop, readable from top to bottom."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ffc_ds.config.comparison import changes
from ffc_ds.config.settings import Config, save_config
from ffc_ds.data.augment import to_input
from ffc_ds.data.batch_checks import check_batches, check_memory_of_workers
from ffc_ds.data.loader import make_loader
from ffc_ds.data.randomness import mix
from ffc_ds.data.sampler import sampler_of
from ffc_ds.distributed import barrier, rank, to_device, together, world_size
from ffc_ds.errors import UserError, shared
from ffc_ds.evaluation.verifier import verify
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.models import build_backbone
from ffc_ds.progress import progress, say
from ffc_ds.shared_folder import open_shared
from ffc_ds.training import checkpoint, checkpoints
from ffc_ds.training.agreement import agreed_identities, check_same_start, check_same_state
from ffc_ds.training.compilation import compile_head, is_worth_compiling
from ffc_ds.training.data import open_training_data
from ffc_ds.training.data_watch import DataWatch
from ffc_ds.training.deepspeed_settings import check_deepspeed_config
from ffc_ds.training.divergence import Diverged, Divergence
from ffc_ds.training.engine import Engine
from ffc_ds.training.finished import is_finished
from ffc_ds.training.identity import identity_of
from ffc_ds.training.known_classes import take_known_classes
from ffc_ds.training.meter import Meter
from ffc_ds.training.preemption import Preemption
from ffc_ds.training.prefill import prefill
from ffc_ds.training.process_group import init_distributed
from ffc_ds.training.profile import Profile
from ffc_ds.training.report import backbone_settings, percent, table, versions, write_report, write_results
from ffc_ds.training.run_lock import RunLock
from ffc_ds.training.saver import Saver
from ffc_ds.training.schedule import for_batch, learning_rate
from ffc_ds.training.starting_weights import start_from_weights
from ffc_ds.training.tracking import Tracker
from ffc_ds.training.watchdog import Watchdog, patience


class Trainer:
    """Everything a run needs, built from its settings; `run()` trains, verifies and writes the results.

    Raises UserError, the same on all ranks, for anything in the settings or the data that cannot work.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.output_dir)
        self.device = init_distributed(patience(config.train))
        self.watchdog = Watchdog(config.train)
        try:
            self._build()
        except BaseException as error:
            self.watchdog.tell(error)
            raise

    def _build(self):
        config = self.config
        self.accumulation = config.train.accumulation
        together(lambda: check_batches(config, world_size()))
        together(lambda: check_deepspeed_config(config))  # before any data is read
        check_same_start(config)
        together(lambda: check_memory_of_workers(config))
        open_shared(self.folder)
        self.lock = together(lambda: RunLock(self.folder) if rank() == 0 else None)
        self.saver = Saver(self.folder / "checkpoints", config.train, self.watchdog.at)
        start = checkpoints.find(config.resume, self.saver.folder)
        self.faces, self.index, self.pairs = open_training_data(config)
        self.people = agreed_identities(self.index)
        self.watchdog.at("building the run")
        self.sampler = together(lambda: sampler_of(config, self.index))
        self.steps = config.train.steps or self.sampler.steps_for(config.train.epochs)
        if (alone := config.train.head_only_steps) >= self.steps:
            raise shared(
                f"train.head_only_steps is {alone}, but the run has {self.steps} steps: the backbone would not learn."
            )
        rows, dim = self.sampler.rows // self.accumulation, config.model.embedding_size
        self.at_once = 2 * rows // world_size()  # images of both views that this rank sees in a micro-batch
        batches = MicroBatches(rows, self.sampler.most_identities(rows), self.accumulation)
        sizes = self.index.identities, dim, batches
        images = self.index.counts if config.loader == "instance" else None  # the others show everybody alike, or pairs
        self.head = build_head(config.head, config.class_optim, *sizes, self.device, config.seed, images)
        set_seed(config.seed)
        backbone = together(lambda: build_backbone(**backbone_settings(config)))
        momentum = (config.head.gallery_momentum or None) if self.head.wants_gallery else None
        self.from_weights = start_from_weights(config, backbone, start)
        self.engine = together(lambda: Engine(config, backbone, momentum, self.from_weights))
        self.optim = for_batch(config.optim, config.data.batch_size)
        self.meter = Meter(config.data.batch_size)
        self.divergence = Divergence(config.train, start)
        self.done, self.verified, self.last_result = 0, {}, None
        self.data_watch, self.compiled = DataWatch(config.data), None
        self.continued, self.resumed = False, start is not None
        self.known = None
        wandb_id = self._resume(start) if self.resumed else None
        if config.head.weights is not None and not self.resumed:
            shown, named = self._shown("take over classes"), self.faces.faces.named
            self.known = take_known_classes(self.head, config, self.index, named, self.device, shown)
        self.compiled = self._compile()
        together(self._make_folder)
        first = self.done if self.resumed else None
        self.tracker = together(lambda: Tracker(config, first, self.steps, wandb_id, not self.continued))

    def run(self) -> dict:
        """Train to the end, or until somebody asks the run to stop. Returns what is written to results.json."""
        with self.watchdog, self.saver:
            self._before_training()
            profile = Profile(self.config.train.profile, self.folder / "profile", self.done, self.steps)
            with Preemption(self.device) as preemption, profile:
                while self.done < self.steps:
                    lr = self._step()
                    try:
                        self._after_step(lr)
                    except Diverged as reason:
                        self._go_back(reason)
                    profile.step()
                    if preemption.agreed() and self.divergence.refusing is None and self.done < self.steps:
                        return self._stop(preemption.code)
                return self._finish()

    def _step(self) -> float:
        """One step of the optimizers. Returns its learning rate."""
        self.engine.head_only = self.done < self.config.train.head_only_steps
        lr = learning_rate(self.optim, self.done, self.steps) * self.divergence.lr_factor
        if self.engine.gallery is not None and self.divergence.refusing is None:  # or it would follow the same twice
            self.engine.gallery.follow()
        for micro in range(self.accumulation):
            loss, parts = self._loss(self._next_batch(), mix(self.seed, self.done, micro, rank()))
            self.engine.backward(loss)
            applied = self.engine.step(lr)
            self.meter.add({"loss": loss.detach()} | parts)
        self.head.step(applied, lr)
        if applied and self.engine.average is not None:
            self.engine.average.follow(self.done)
        self.meter.step()
        self.done += 1
        self.divergence.count(self.done, applied, self.engine.looks_for_scale)
        return lr

    def _before_training(self):
        given, size = self.config.optim, self.config.data.batch_size
        if given.lr_batch:
            meant = f"optim.lr {given.lr:g} is meant for batches of {given.lr_batch} images"
            self.tracker.say(f"{meant}: for these of {size} it is {self.optim.lr:g}")
        dtype = str(self.engine.dtype).removeprefix("torch.")
        self.tracker.say(f"the backbone computes in {dtype}, as {self.config.deepspeed} has it")
        if not self.resumed:
            self._verify()
            self._prefill()
        elif self.done == self.steps:
            try:
                self._verify()
            except Diverged as reason:
                self._go_back(reason)
        if self.config.train.on_divergence == "rewind" and not self.continued:
            self._save()  # somewhere to go back to
            self.saver.wait()
        self._load_batches()

    def _prefill(self):
        """Classes that begin with features. That is a part of what training takes: the metrics say how long it was."""
        begin, shown = time.perf_counter(), self._shown("make classes of features")
        if prefill(self.head, self.engine, self.faces, self.index, self.config, self.at_once, shown, self.known):
            self.tracker.log({"step": 0, "prefill_seconds": time.perf_counter() - begin})

    def _shown(self, what):
        """Wraps batches so that the eye, and the watchdog, see how far they are."""

        def wrap(batches):
            bar = progress(batches, desc=what, unit="batches", leave=False, shown=rank() == 0)
            return self.watchdog.passing(bar, what)

        return wrap

    def _compile(self) -> bool:
        """Compile the nets if the settings want it or, by themselves, for a long run; a resumed one is computed as it
        began. Returns whether they are compiled."""
        wanted, size = self.config.train.compile, self.config.model.image_size
        if self.engine.zero_stage == 3:
            if wanted == "on" and rank() == 0:
                say("train.compile on does nothing under ZeRO-3, which fetches weights between the layers")
            return False
        shape = (self.at_once, 3, size, size)
        if wanted == "auto" and self.compiled is None:
            micro_batches = self.steps * self.accumulation
            self.compiled = is_worth_compiling(self.engine.module, self.engine.blank(shape), micro_batches)
        if wanted == "off" or (wanted == "auto" and not self.compiled):
            return False
        evaluated = self.pairs and (self.pairs.batch_size(self.config.eval.batch_size), *shape[1:])
        compiled = self.engine.compile(shape, evaluated)
        if compiled:
            compile_head(self.head)
        return compiled

    def _loss(self, batch, seed):
        """Features of both views by the nets, and what the head makes of them."""
        torch.manual_seed(int(seed) >> 1)  # dropout, with no state to save
        self.data_watch.note(batch.replaced)
        images = batch.images.to(self.device, non_blocking=True)
        flips, random_bytes = to_device(batch.flips, self.device), to_device(batch.bytes, self.device)
        inputs = to_input(images, flips, random_bytes, self.config.data, self.engine.dtype)
        probe, gallery = self.engine.features(inputs).unflatten(0, (2, -1)), None
        if self.engine.gallery is not None:
            gallery = self.engine.gallery.features(inputs).unflatten(0, (2, -1))
        return self.head.loss(probe, batch.labels, gallery)

    def _load_batches(self):
        """Those of the steps to come; other ones each time that the run has gone back."""
        self.batches = None  # shared memory is there for one loader
        self.seed = self.sampler.seed = self.divergence.seed(self.config.seed)
        loader = make_loader(
            self.faces,
            self.sampler,
            self.config.model.image_size,
            rank(),
            world_size(),
            self.accumulation,
            self.done,
            self.steps,
            self.config.data.workers,
            self.config.data.max_megapixels,
        )
        self.batches = self.meter.timed(loader)
        self.meter.start()

    def _next_batch(self):
        step = f"step {self.done + 1}"
        self.watchdog.at(f"the data of {step}")
        batch = next(self.batches)
        self.watchdog.at(step)
        return batch

    def _after_step(self, lr):
        """Log, verify and save, each when it is time. Raises Diverged."""
        every, last = self.config.eval.every, self.done == self.steps
        self.tracker.advance()
        if self.done % self.config.train.log_every == 0 or last:
            state = {"lr": lr, "gradient_norm": self.engine.gradient_norm, "refused_steps": self.divergence.refused}
            state |= {"rewinds": self.divergence.rewinds, "replaced_images": self.data_watch.total(self.device)}
            epoch = self.done * self.sampler.batch_size / len(self.index.images)
            summary = self.meter.summary()
            self.tracker.log({"step": self.done, "epoch": epoch} | summary | state)
            check_same_state(self.engine, self.head, self.done)
            self.data_watch.judge(state["replaced_images"], self.done, summary["data_wait"])
        self.divergence.check(last)
        if last or (every and self.done % every == 0):
            self._verify()
        if last or (self.saver.is_due(self.done) and self.divergence.refusing is None):
            with self.meter.saving():
                self._save()

    def _verify(self):
        """Verification, on identities that were not trained on, of the net that the run will hand on. Raises
        Diverged."""
        done = self.done
        if self.pairs is None:
            self.verified[str(done)] = {"accuracy": None, "reason": "nothing is verified"}
            return
        with self.meter.paused():
            self.engine.average_buffers()
            result = verify(
                self.engine.trained(),
                self.pairs,
                self.config.model.image_size,
                self.config.eval.batch_size,
                self.device,
                self.engine.dtype,
                self._shown(f"verify at step {done}"),
                self.config.data.max_megapixels,
                self.config.data.flip,
            )
        if result is None and done == 0 and not self.from_weights:
            # Through the first statistics of batch normalisation many layers overflow; those of training do not.
            self.verified["0"] = {"accuracy": None, "reason": "the embeddings of the untrained net are not finite"}
            self.tracker.say(f"step 0: {self.verified['0']['reason']}, which the first steps will mend")
            return
        if result is None:
            raise Diverged(f"the embeddings are not finite at step {done}")
        self.last_result = result
        found = self.verified[str(done)] = result.to_dict()
        rates = {f"tar_at_far_{far}": value for far, value in found.get("tar_at_far", {}).items()}
        flat = {key: value for key, value in found.items() if key != "tar_at_far"} | rates
        self.tracker.log({"step": done} | flat)
        self.tracker.say(f"step {done}: verification on {self.pairs.name} {percent(found)}")

    def _save(self):
        self.watchdog.at(f"the checkpoint of step {self.done}")
        self.engine.average_buffers()
        run = {
            "identity": self._identity(),
            "dtype": str(self.engine.dtype),
            "divergence": self.divergence.state(),
            "replaced": self.data_watch.total(self.device),
            "verified": self.verified,
            "compiled": self.compiled,
            "from_weights": self.from_weights,
            "meter": self.meter.state(),
            "wandb_id": self.tracker.wandb_id,
            "config": asdict(self.config),
        }
        self.tracker.flush()
        self.saver.save(self.done, self.done == self.steps, self.engine, self.head, run, self.index.names)

    def _make_folder(self):
        if rank() == 0:
            try:
                if not is_finished(self.folder):
                    (self.folder / "results.json").unlink(missing_ok=True)  # of a run that was stopped and goes on
                checkpoints.tidy(self.saver.folder, self.config.train.keep_checkpoints)
                save_config(replace(self.config, resume=None), self.folder / "config.yaml")
                checkpoint.write_names(self.index.names, self.folder / checkpoint.IDENTITIES)
            except OSError as error:
                raise UserError(f"output_dir {self.folder} cannot be written to: {error.strerror}.") from None

    def _resume(self, path: Path) -> str | None:
        """Take over the checkpoint that is asked for. Returns its run in Weights & Biases, if it is this one."""
        run = self._take_over(path)
        self.divergence.load(run["divergence"])
        if (back := self.divergence).rewinds and rank() == 0:
            say(f"the run went back {back.rewinds} times: its learning rate is {back.lr_factor:g} of optim.lr")
        self.compiled = run["compiled"]
        if (changed := changes(run["config"], self.config)) and rank() == 0:
            say(f"going on with other settings than before: {', '.join(changed)}")
        if run["dtype"] != (dtype := str(self.engine.dtype)) and rank() == 0:
            say(f"warning: the steps up to here were computed in {run['dtype']}, those from here on are in {dtype}")
        return run["wandb_id"] if self.continued else None

    def _take_over(self, path: Path) -> dict:
        """Go on from a checkpoint. Returns what it says of its run."""
        run = together(lambda: checkpoint.read_run(path, self._identity()))
        if run["step"] > self.steps:
            raise shared(f"{path} is at step {run['step']}, beyond the {self.steps} steps of this run.")
        checkpoint.load(path, self.engine, self.head)
        self.done, self.verified = run["step"], run["verified"]
        self.data_watch.replaced = run["replaced"] if rank() == 0 else 0  # one rank knows of all before
        self.meter.load(run["meter"])
        self.continued = path.resolve().parent == self.saver.folder.resolve()  # another folder is another run
        if self.continued:
            checkpoints.leave_behind(self.saver.folder, self.done)
            self.saver.goes_on_from(self.done)
        return run

    def _go_back(self, reason: Diverged):
        """Go on from an earlier checkpoint, more cautiously. Raises UserError if the run is to stop instead."""
        self.saver.wait()
        self._take_over(self.divergence.go_back(reason, self.done, self.saver.folder, self.config.optim.lr))
        together(lambda: self.tracker.go_back(self.done))
        self._save()  # with what has changed: who resumes it is not to try the same again
        self._load_batches()

    def _identity(self) -> dict:
        return identity_of(self.config, self.engine, self.index, self.people)

    def _stop(self, exit_code: int) -> dict:
        """Save, and leave the rest to a run that is resumed."""
        self.watchdog.at(f"the checkpoint of step {self.done}")
        self.saver.wait()
        if self.saver.saved != self.done:
            self._save()
            self.saver.wait()
        code = exit_code if self.saver.saved == self.done else 2
        results = self._results() | {"preempted": True, "exit_code": code}
        self.tracker.close(preempted=True)
        if rank() == 0:
            try:
                write_results(self.folder, results)
            except OSError as error:  # what is saved is enough to go on from
                say(f"warning: {self.folder}/results.json cannot be written: {error.strerror}")
            say(f"stopped at step {self.done} of {self.steps}; {self.saver.how_to_go_on(self.done)}")
            self.lock.release()
        barrier()
        return results

    def _finish(self) -> dict:
        self.watchdog.at("writing the results")
        trained = {"untrained": self.verified.get("0"), "trained": self.verified[str(self.steps)]}
        results = trained | self._results() | {"preempted": False, "exit_code": 0}
        weights = self.engine.weights()
        self.tracker.close({"accuracy": results["trained"]["accuracy"]})
        report = self.config, results, self.engine.module, weights, self.last_result
        together(lambda: write_report(*report) if rank() == 0 else None)
        if rank() == 0:
            say(table(results, self.folder))
            self.lock.release()
        barrier()
        return results

    def _results(self) -> dict:
        return {
            "steps": self.done,
            "refused_steps": self.divergence.refused,
            "rewinds": self.divergence.rewinds,
            "identities": self.index.identities,
            "images": len(self.index.images),
            "world_size": world_size(),
            "seed": self.config.seed,
            "versions": versions(),
            "config": asdict(self.config),
        }
