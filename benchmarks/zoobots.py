"""zoobot 2.9.0 as the benchmarks run it, in its own environment (`rounds.zoobot_python`) and with its own trainer,
augmentation and prediction.

Not run by hand: train.py, head_only.py, predict.py, rare.py, fewlabels.py and time_to_accuracy.py start it and send it
the names of rows."""
import importlib, logging, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings("ignore")
from rounds import answer, cpu_seconds, timed

QUIET = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
PACKAGES = ["lightning", "timm", "galaxy_datasets.pytorch.galaxy_datamodule", "galaxy_datasets.transforms",
            "zoobot.pytorch.predictions.predict_on_catalog", "zoobot.pytorch.training.finetune"]

def catalogs(job):
    "The galaxies of each part, and how many classes there are"
    import pandas as pd
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(len(job["files"]))], file_loc=job["files"],
                           label=job["labels"], split=job["split"]))
    parts = {k: df[df.split==k].reset_index(drop=True) for k in ("train", "valid", "test")}
    return parts,int(df.label.max())+1

def view(config, job):
    "One of zoobot's views, for images of the job's size"
    from galaxy_datasets.transforms import get_galaxy_transform
    c = config()
    c.output_size = job["size"]
    return get_galaxy_transform(c)

def data(job, parts):
    "The galaxies to train on, with zoobot's augmentation, and those to validate with"
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import default_view_config, minimal_view_config
    return CatalogDataModule(["label"], view(default_view_config, job), view(minimal_view_config, job),
                             train_catalog=parts["train"], val_catalog=parts["valid"], test_catalog=parts["valid"],
                             batch_size=job["batch_size"], num_workers=job["workers"])

def new_model(job, classes, **kw):
    "zoobot's classifier on the job's encoder"
    import timm, torch
    from zoobot.pytorch.training.finetune import FinetuneableZoobotClassifier
    torch.manual_seed(0)
    encoder = timm.create_model(job["encoder"], num_classes=0, pretrained=False)
    if job.get("weights"): encoder.load_state_dict(torch.load(job["weights"], weights_only=True))
    return FinetuneableZoobotClassifier(encoder=encoder, num_classes=classes, label_col="label", **kw)

def new_clock():
    "Seconds of the training part of each epoch, and accuracy on the validation galaxies with the time after it"
    import lightning as L, numpy as np
    class Clock(L.Callback):
        def __init__(self):
            self.start = time.perf_counter()
            self.train,self.epochs,self.right = [],[],[]
        def on_train_epoch_start(self, *_): self.began = time.perf_counter(),cpu_seconds()
        def on_train_batch_end(self, *_): self.last = time.perf_counter(),cpu_seconds()
        def on_validation_epoch_start(self, *_): self.right = []
        def on_validation_batch_end(self, trainer, module, out, *_):
            self.right += (out["predictions"].argmax(1)==out["labels"]).tolist()
        def on_train_epoch_end(self, *_):
            self.train.append([b-a for a,b in zip(self.began, self.last)])
            self.epochs.append([time.perf_counter()-self.start, float(np.mean(self.right))])
    return Clock()

def fit(job, parts, classes, epochs, seed=0, then=None, **kw):
    "Train by zoobot's trainer; its clock. `then` is called with the model, its best checkpoint's weights in it"
    import lightning as L, torch
    from zoobot.pytorch.training.finetune import get_trainer
    L.seed_everything(seed)
    model,clock = new_model(job, classes, **kw),new_clock()
    with tempfile.TemporaryDirectory() as tmp:
        trainer = get_trainer(tmp, max_epochs=epochs, num_sanity_val_steps=0, **QUIET)
        # but for the monitor of learning rates, which needs a logger
        trainer.callbacks = [o for o in trainer.callbacks if type(o).__name__!="LearningRateMonitor"]+[clock]
        trainer.fit(model, data(job, parts))
        if then:
            best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)
            model.load_state_dict(best["state_dict"])
            then(model)
    return clock

def training_rows(job, parts, classes):
    "Training: the second of two epochs, the head alone to its end, and accuracy by time"
    def train():
        seconds,cpu = fit(job, parts, classes, 2).train[-1]
        return dict(n=len(parts["train"])//job["batch_size"]*job["batch_size"], seconds=seconds, cpu=cpu)
    def head_only():
        start = time.perf_counter(),cpu_seconds()
        clock = fit(job, parts, classes, job["epochs"], training_mode="head_only", learning_rate=job["head_lr"])
        return dict(n=1, seconds=time.perf_counter()-start[0], cpu=cpu_seconds()-start[1],
                    accuracy=max(a for _,a in clock.epochs))
    def to_accuracy(seed): return dict(n=1, epochs=fit(job, parts, classes, job["epochs"], seed).epochs)
    accuracies = {f"accuracy {s}": (lambda s=s: to_accuracy(s)) for s in job.get("seeds", [])}
    return dict(train=train, head_only=head_only),accuracies

def prediction_rows(job, parts, classes):
    "Train by zoobot's trainer, and predict the test galaxies: probabilities `(galaxies, classes)`"
    import pandas as pd
    from galaxy_datasets.transforms import minimal_view_config
    from zoobot.pytorch.predictions.predict_on_catalog import predict
    names,loading = [str(i) for i in range(classes)],dict(batch_size=job["batch_size"], num_workers=job["workers"])
    def trained(seed):
        got = {}
        def score(model):
            with tempfile.TemporaryDirectory() as tmp:
                out = Path(tmp)/"p.csv"
                predict(parts["test"], model, str(out), names, view(minimal_view_config, job), loading, QUIET)
                said = pd.read_csv(out, dtype={"id_str": str}).set_index("id_str")
                got["p"] = said.loc[parts["test"].id_str, names].to_numpy().tolist()
        fit(job, parts, classes, job["epochs"], seed, score)
        return dict(n=1, **got)
    return {f"trained {s}": (lambda s=s: trained(s)) for s in job.get("seeds", [])}

def prediction_row(job, parts, classes):
    "From files to a table, and the classes that it has; with the head of the job, where there is one"
    import pandas as pd, torch
    from galaxy_datasets.transforms import minimal_view_config
    from zoobot.pytorch.predictions.predict_on_catalog import predict
    model,names = new_model(job, classes),[str(i) for i in range(classes)]
    if job.get("head"):
        with torch.no_grad():
            model.head.linear.weight.copy_(torch.tensor(job["head"]["weight"]))
            model.head.linear.bias.copy_(torch.tensor(job["head"]["bias"]))
    loading = dict(batch_size=job["batch_size"], num_workers=job["workers"])
    def predictions():
        with tempfile.TemporaryDirectory() as tmp:
            out = Path(tmp)/"p.csv"
            def to_table():
                seen = view(minimal_view_config, job)
                predict(parts["test"], model, str(out), names, seen, loading, QUIET)
            got = timed(to_table, n=len(parts["test"]))
            return {**got, "classes": pd.read_csv(out)[names].to_numpy().argmax(1).tolist()}
    return predictions

def make(job):
    "The rows of a job, and the versions they are of"
    logging.disable(logging.CRITICAL)
    for o in PACKAGES: importlib.import_module(o)                  # before any clock starts
    import torch
    parts,classes = catalogs(job)
    rows,accuracies = training_rows(job, parts, classes)
    rows |= dict(predict=prediction_row(job, parts, classes)) | accuracies | prediction_rows(job, parts, classes)
    torch.set_num_threads(job["threads"])
    return rows,dict(versions={o: version(o) for o in ("zoobot", "galaxy-datasets", "lightning")})

if __name__=="__main__":
    if not answer(make): raise SystemExit(__doc__)
