"""zoobot 2.9.0 as the benchmarks run it, in its own environment (`rounds.zoobot_python`) and with its own trainer, augmentation and prediction.

Not run by hand: train.py, head_only.py, predict.py and time_to_accuracy.py start it and send it the names of rows."""
import logging, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
from rounds import answer, cpu_seconds, timed

def make(job):
    import lightning as L, numpy as np, pandas as pd, timm, torch
    logging.disable(logging.CRITICAL)
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import default_view_config, get_galaxy_transform, minimal_view_config
    from importlib.metadata import version
    from zoobot.pytorch.predictions.predict_on_catalog import predict
    from zoobot.pytorch.training.finetune import FinetuneableZoobotClassifier, get_trainer
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(len(job["files"]))], file_loc=job["files"], label=job["labels"], split=job["split"]))
    parts = {k: df[df.split==k].reset_index(drop=True) for k in ("train", "valid", "test")}
    classes,quiet = int(df.label.max())+1,dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    def view(f):
        c = f()
        c.output_size = job["size"]
        return get_galaxy_transform(c)
    def encoder():
        torch.manual_seed(0)
        m = timm.create_model(job["encoder"], num_classes=0, pretrained=False)
        if job.get("weights"): m.load_state_dict(torch.load(job["weights"], weights_only=True))
        return m
    def data(): return CatalogDataModule(["label"], view(default_view_config), view(minimal_view_config), train_catalog=parts["train"], val_catalog=parts["valid"], test_catalog=parts["valid"], batch_size=job["batch_size"], num_workers=job["workers"])
    class Clock(L.Callback):
        "Seconds of the training part of each epoch, and accuracy and loss on the validation galaxies after it"
        def __init__(self): self.start,self.train,self.epochs,self.right = time.perf_counter(),[],[],[]
        def on_train_epoch_start(self, *_): self.began = time.perf_counter(),cpu_seconds()
        def on_train_batch_end(self, *_): self.last = time.perf_counter(),cpu_seconds()
        def on_validation_epoch_start(self, *_): self.right = []
        def on_validation_batch_end(self, trainer, module, out, *_): self.right += (out["predictions"].argmax(1)==out["labels"]).tolist()
        def on_train_epoch_end(self, *_):
            self.train.append([b-a for a,b in zip(self.began, self.last)])
            self.epochs.append([time.perf_counter()-self.start, float(np.mean(self.right))])
    def fit(epochs, seed=0, **kw):
        L.seed_everything(seed)
        model,clock = FinetuneableZoobotClassifier(encoder=encoder(), num_classes=classes, label_col="label", **kw),Clock()
        with tempfile.TemporaryDirectory() as tmp:
            trainer = get_trainer(tmp, max_epochs=epochs, num_sanity_val_steps=0, **quiet)
            trainer.callbacks = [o for o in trainer.callbacks if type(o).__name__!="LearningRateMonitor"]+[clock]          # which needs a logger
            trainer.fit(model, data())
        return model,clock
    def train():
        _,clock = fit(2)
        return dict(n=len(parts["train"])//job["batch_size"]*job["batch_size"], seconds=clock.train[-1][0], cpu=clock.train[-1][1])
    def head():
        start = time.perf_counter(),cpu_seconds()
        _,clock = fit(job["epochs"], training_mode="head_only", learning_rate=job["head_lr"])
        return dict(n=1, seconds=time.perf_counter()-start[0], cpu=cpu_seconds()-start[1], accuracy=max(a for _,a in clock.epochs))
    def to_accuracy(seed): return dict(n=1, epochs=fit(job["epochs"], seed)[1].epochs)
    model = FinetuneableZoobotClassifier(encoder=encoder(), num_classes=classes, label_col="label")
    if job.get("head"):
        with torch.no_grad(): model.head.linear.weight.copy_(torch.tensor(job["head"]["weight"])); model.head.linear.bias.copy_(torch.tensor(job["head"]["bias"]))
    def predictions():
        with tempfile.TemporaryDirectory() as tmp:
            got = timed(lambda: predict(parts["test"], model, str(Path(tmp)/"p.csv"), [str(i) for i in range(classes)], view(minimal_view_config), dict(batch_size=job["batch_size"], num_workers=job["workers"]), quiet), n=len(parts["test"]))
            return {**got, "classes": pd.read_csv(Path(tmp)/"p.csv")[[str(i) for i in range(classes)]].to_numpy().argmax(1).tolist()}
    torch.set_num_threads(job["threads"])
    rows = dict(train=train, head_only=head, predict=predictions) | {f"accuracy {s}": (lambda s=s: to_accuracy(s)) for s in job.get("seeds", [])}
    return rows,dict(versions={o: version(o) for o in ("zoobot", "galaxy-datasets", "lightning")})

if __name__=="__main__":
    if not answer(make): raise SystemExit(__doc__)
