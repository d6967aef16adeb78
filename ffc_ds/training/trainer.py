"""A run from its settings to its results: the loop, readable from top to bottom."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import set_seed

from ffc_ds.config.settings import Config, save_config
from ffc_ds.data.augment import to_input
from ffc_ds.data.loader import check_batch_size, check_shared_memory, make_loader
from ffc_ds.data.randomness import mix, permute
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import check_replaced
from ffc_ds.distributed import all_reduce, broadcast_object, host_share, rank, to_device, together, world_size
from ffc_ds.embedding import embed
from ffc_ds.errors import UserError, shared
from ffc_ds.evaluation.verifier import verify
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.models import build_backbone
from ffc_ds.progress import progress, say
from ffc_ds.training import checkpoint, checkpoints
from ffc_ds.training.compilation import is_worth_compiling
from ffc_ds.training.data import open_training_data
from ffc_ds.training.engine import Engine, check_deepspeed_config, init_distributed
from ffc_ds.training.meter import Meter
from ffc_ds.training.report import backbone_settings, percent, table, versions, write_report
from ffc_ds.training.saver import Saver
from ffc_ds.training.schedule import for_batch, learning_rate
from ffc_ds.training.shared_folder import open_shared
from ffc_ds.training.tracking import Tracker

PREFILL_STREAM = 200
PREFILL_CHUNK = 1 << 16


class Trainer:
    """Everything a run needs, built from its settings; `run()` trains, verifies and writes the results.

    Raises UserError, the same on all ranks, for anything in the settings or the data that cannot work.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.output_dir)
        self.device = init_distributed()
        self.accumulation = config.train.accumulation
        data, model = config.data, config.model
        whole = data.images_per_identity // 2 if config.loader == "id" else 1
        together(lambda: check_batch_size(data.batch_size, world_size(), self.accumulation, whole))
        together(lambda: check_deepspeed_config(config))  # before any data is read
        on_this_host = data.batch_size / self.accumulation * host_share()
        together(lambda: check_shared_memory(on_this_host, model.image_size, data.workers))
        open_shared(self.folder)
        self.faces, self.index, self.pairs = open_training_data(config)
        self.people = broadcast_object(self.index.digest() if rank() == 0 else None)
        self.sampler = together(
            lambda: Sampler(
                self.index, data.batch_size, config.loader, data.id_share, config.seed, data.images_per_identity
            )
        )
        self.steps = config.train.steps or self.sampler.steps_for(config.train.epochs)
        rows, dim = self.sampler.rows // self.accumulation, model.embedding_size
        self.at_once = 2 * rows // world_size()  # images of both views that this rank sees in a micro-batch
        batches = MicroBatches(rows, self.sampler.most_identities(rows), self.accumulation)
        self.head = build_head(
            config.head, config.class_optim, self.index.identities, dim, batches, self.device, config.seed
        )
        set_seed(config.seed)
        backbone = together(lambda: build_backbone(**backbone_settings(config)))
        momentum = (config.head.gallery_momentum or None) if self.head.wants_gallery else None
        self.engine = together(lambda: Engine(config, backbone, momentum))
        self.optim = for_batch(config.optim, data.batch_size)
        self.meter = Meter(data.batch_size)
        self.saver = Saver(self.folder / "checkpoints", config.train)
        self.start, self.skipped, self.verified, self.last_result = 0, 0, {}, None
        self.replaced, self.told, self.compiled = 0, set(), None
        wandb_id = self._resume()
        self.compiled = self._compile()
        together(self._make_folder)
        self.tracker = together(lambda: Tracker(config, self.start, self.steps, wandb_id))

    def run(self) -> dict:
        """Train to the end. Returns what is written to results.json."""
        given, size = self.config.optim, self.config.data.batch_size
        if given.lr_batch:
            meant = f"optim.lr {given.lr:g} is meant for batches of {given.lr_batch} images"
            self.tracker.say(f"{meant}: for these of {size} it is {self.optim.lr:g}")
        if self.start == 0:
            self._verify(0)
            self._prefill()
        batches = self.meter.timed(self._batches())
        self.meter.start()
        for step in range(self.start, self.steps):
            lr = learning_rate(self.optim, step, self.steps)
            if self.engine.gallery is not None:
                self.engine.gallery.follow()
            for micro in range(self.accumulation):
                loss, parts = self._loss(next(batches), mix(self.config.seed, step, micro, rank()))
                self.engine.backward(loss)
                applied = self.engine.step(lr)
                self.meter.add({"loss": loss.detach()} | parts)
            self.head.step(applied, lr)
            if applied and self.engine.average is not None:
                self.engine.average.follow(step)
            self.skipped += not applied
            self.meter.step()
            self._after_step(step + 1, lr)
        if self.start == self.steps:  # resumed at its end
            self._verify(self.steps)
        return self._finish()

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
            self.compiled = is_worth_compiling(backbone_settings(self.config), self.engine.blank(shape), micro_batches)
        if wanted == "off" or (wanted == "auto" and not self.compiled):
            return False
        evaluated = self.pairs and (self.pairs.batch_size(self.config.eval.batch_size), *shape[1:])
        return self.engine.compile(shape, evaluated)

    def _loss(self, batch, seed):
        """Features of both views by the nets, and what the head makes of them."""
        torch.manual_seed(int(seed) >> 1)  # dropout, with no state to save
        self._tell_replaced(batch.replaced)
        images = batch.images.to(self.device, non_blocking=True)
        flips, random_bytes = to_device(batch.flips, self.device), to_device(batch.bytes, self.device)
        inputs = to_input(images, flips, random_bytes, self.config.data, self.engine.dtype)
        probe, gallery = self.engine.features(inputs).unflatten(0, (2, -1)), None
        if self.engine.gallery is not None:
            gallery = self.engine.gallery.features(inputs).unflatten(0, (2, -1))
        return self.head.loss(probe, batch.labels, gallery)

    def _tell_replaced(self, replaced):
        """Count the images that could not be read or decoded, and say of each once what stands in its place."""
        self.replaced += len(replaced)
        for what in replaced:
            if what not in self.told:
                self.told.add(what)
                say(what)

    def _replaced_images(self) -> int:
        """Of the whole run, on all ranks."""
        return int(all_reduce(torch.tensor(self.replaced, device=self.device)))

    def _batches(self):
        return make_loader(
            self.faces,
            self.sampler,
            self.config.model.image_size,
            rank(),
            world_size(),
            self.accumulation,
            self.start,
            self.steps,
            self.config.data.workers,
            self.config.data.max_megapixels,
        )

    def _after_step(self, done, lr):
        """Log, verify and save, each when it is time, after `done` steps."""
        train, every, last = self.config.train, self.config.eval.every, done == self.steps
        self.tracker.advance()
        if done % train.log_every == 0 or last:
            state = {"lr": lr, "gradient_norm": self.engine.gradient_norm, "skipped_steps": self.skipped}
            state["replaced_images"] = self._replaced_images()
            epoch = done * self.sampler.batch_size / len(self.index.images)
            self.tracker.log({"step": done, "epoch": epoch} | self.meter.summary() | state)
            data = self.config.data
            check_replaced(state["replaced_images"], done * data.batch_size, data.max_replaced)
        if last or (every and done % every == 0):
            self._verify(done)
        if self.saver.is_due(done, last):
            with self.meter.paused():
                self._save(done, last)

    def _verify(self, done):
        """Verification, on identities that were not trained on, of the net that the run will hand on."""
        if self.pairs is None:
            self.verified[str(done)] = {"accuracy": None, "reason": "nothing is verified"}
            return

        def shown(batches):
            return progress(batches, desc=f"verify at step {done}", unit="batches", leave=False, shown=rank() == 0)

        with self.meter.paused():
            self.engine.average_buffers()
            result = verify(
                self.engine.trained(),
                self.pairs,
                self.config.model.image_size,
                self.config.eval.batch_size,
                self.device,
                self.engine.dtype,
                shown,
                self.config.data.max_megapixels,
            )
        self.last_result = result
        found = {"accuracy": None, "reason": "the embeddings are not finite"} if result is None else result.to_dict()
        self.verified[str(done)] = found
        rates = {f"tar_at_far_{far}": value for far, value in found.get("tar_at_far", {}).items()}
        flat = {key: value for key, value in found.items() if key not in ("tar_at_far", "reason")} | rates
        self.tracker.log({"step": done} | flat)
        self.tracker.say(f"step {done}: verification on {self.pairs.name} {percent(found)}")

    def _prefill(self):
        """One pass of the net that makes the centers over one image each of a share of the identities."""

        def shown(batches):
            return progress(batches, desc="fill the pool", unit="batches", leave=False, shown=rank() == 0)

        key = mix(self.config.seed, PREFILL_STREAM)
        torch.manual_seed(int(mix(key, rank())) >> 1)  # dropout
        wanted = permute(np.arange(self.head.prefill_identities), self.index.identities, key)
        for identities in np.array_split(wanted, -(-len(wanted) // PREFILL_CHUNK)) if len(wanted) else ():
            features = embed(
                self.engine.gallery_features,
                self.faces,
                self.index.images[self.index.offsets[identities]],
                self.config.model.image_size,
                self.at_once,
                self.device,
                self.engine.dtype,
                progress=shown,
                max_megapixels=self.config.data.max_megapixels,
            )
            self.head.prefill(identities, features)

    def _save(self, done, last):
        self.engine.average_buffers()
        run = {
            "identity": self._identity(),
            "skipped": self.skipped,
            "replaced": self._replaced_images(),
            "verified": self.verified,
            "compiled": self.compiled,
            "meter": self.meter.state(),
            "wandb_id": self.tracker.wandb_id,
            "config": asdict(self.config),
        }
        self.saver.save(done, last, self.engine, self.head, run)

    def _make_folder(self):
        if rank() == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                checkpoints.tidy(self.folder / "checkpoints", self.config.train.keep_checkpoints)
                save_config(replace(self.config, resume=None), self.folder / "config.yaml")
                pq.write_table(pa.table({"identity": self.index.names}), self.folder / "identities.parquet")
            except OSError as error:
                raise UserError(f"output_dir {self.folder} cannot be written to: {error.strerror}.") from None

    def _resume(self) -> str | None:
        """Take over the checkpoint that is asked for, if any. Returns its run in Weights & Biases."""
        path = checkpoints.find(self.config.resume, self.folder / "checkpoints")
        if path is None:
            return None
        run = together(lambda: checkpoint.read_run(path, self._identity(), self.engine.zero_stage))
        if run["step"] > self.steps:
            raise shared(f"{path} is at step {run['step']}, beyond the {self.steps} steps of this run.")
        checkpoint.load(path, self.engine, self.head)
        self.start, self.skipped, self.verified = run["step"], run["skipped"], run["verified"]
        self.compiled = run["compiled"]
        self.replaced = run["replaced"] if rank() == 0 else 0  # one rank knows of all before
        self.meter.load(run["meter"])
        folder = self.folder / "checkpoints"
        if path.resolve().parent != folder.resolve():
            return None  # another folder is another run
        checkpoints.leave_behind(folder, self.start)
        return run["wandb_id"]

    def _identity(self) -> dict:
        """What must be the same for a checkpoint to be of this run."""
        config = self.config
        model = {f"model.{key}": value for key, value in asdict(config.model).items()}
        head = {f"head.{key}": value for key, value in asdict(config.head).items() if key != "workspace_mb"}
        drawn = ("min_images", "batch_size", "id_share", "images_per_identity")
        drawn += ("shift", "crop", "erase", "low_resolution", "blur", "grey", "colour")
        data = {f"data.{key}": getattr(config.data, key) for key in drawn} | {"data.loader": config.loader}
        optim = {f"optim.{key}": getattr(config.optim, key) for key in ("name", "momentum", "weight_decay")}
        optim["optimizer"] = self.engine.optimizer_name  # a ds_config may bring its own
        optim["train.average"] = config.train.average
        optim |= {f"class_optim.{key}": value for key, value in asdict(config.class_optim).items() if key != "memory"}
        count = {"identities": self.index.identities, "images": len(self.index.images), "people": self.people}
        return model | head | data | optim | count | {"seed": config.seed, "dtype": str(self.engine.dtype)}

    def _finish(self) -> dict:
        results = {
            "untrained": self.verified.get("0"),
            "trained": self.verified[str(self.steps)],
            "steps": self.steps,
            "skipped_steps": self.skipped,
            "identities": self.index.identities,
            "images": len(self.index.images),
            "world_size": world_size(),
            "seed": self.config.seed,
            "versions": versions(),
            "config": asdict(self.config),
        }
        weights = self.engine.weights()
        self.tracker.close({"accuracy": results["trained"]["accuracy"]})
        together(lambda: write_report(self.config, results, weights, self.last_result) if rank() == 0 else None)
        if rank() == 0:
            print(table(results, self.folder), flush=True)
        return results
