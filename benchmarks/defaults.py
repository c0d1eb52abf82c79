"""What the defaults of `galaxy_learner` and `fine_tune` are worth: three data sets, three encoders, one parameter
changed at a time.

    python benchmarks/defaults.py [--hours 1] [--worker 0/2] [--only gz1 lite0 seed1 ...]
        runs what is not in the results yet
    python benchmarks/defaults.py --table
        prints the tables of docs/defaults.md

Each run appends one line to benchmarks/results/defaults.jsonl, and is skipped where its line is there already. The
split (70 % train, 10 % valid, 20 % test), the head's first weights and the training follow the seed, so the settings of
one seed differ in nothing but the setting. The data are expected in ../shared/data, or in $ZOOFAST_DATA; the ConvNeXt
is made by benchmarks/pretrain.py.
"""
import argparse, json, os, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import fastai, numpy as np, pandas as pd, timm, torch
from sklearn.model_selection import train_test_split
from zoofast.all import (GalaxyDataLoaders, galaxy_learner, predict_catalog, read_catalog, score_predictions,
                         split_catalog)

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ZOOFAST_DATA", HERE.parents[1]/"shared"/"data"))
RESULTS = HERE/"results"/"defaults.jsonl"
ENCODERS = {"lite0": "tf_efficientnet_lite0", "convnext": f"local-dir:{HERE.parent}/models/convnext_atto-simulated",
            "lite1": "tf_efficientnet_lite1"}
SEEDS = {"mirabest": 5, "rings": 3, "gz1": 2}
# pixels; 64 for the others, to save time
SIZE = {("mirabest", "lite0"): 96, ("mirabest", "lite1"): 96, ("rings", "lite0"): 96}
GZ1 = {"train": 320, "valid": 60}        # of 1,255 and 180 galaxies, to save time; all 359 of the test

# Name: parameters of `galaxy_learner`, parameters of `fine_tune`; the most telling first
TIERS = [{
    "default": ({}, {}),
    "learning_rate=3e-5": (dict(learning_rate=3e-5), {}),
    "learning_rate=3e-4": (dict(learning_rate=3e-4), {}),
    "learning_rate=1e-3": (dict(learning_rate=1e-3), {}),
    "layer_decay=0.5": (dict(layer_decay=0.5), {}),
    "layer_decay=1": (dict(layer_decay=1.), {}),
    "freeze_epochs=0": ({}, dict(freeze_epochs=0)),
    "freeze_epochs=3": ({}, dict(freeze_epochs=3)),
    "head_only": (dict(training_mode="head_only"), {}),
}, {
    "freeze_epochs=10": ({}, dict(freeze_epochs=10)),
    "flat_cos": ({}, dict(flat_cos=True)),
    "head_dropout_prob=0": (dict(head_dropout_prob=0.), {}),
    "15 epochs": ({}, dict(epochs=15)),
    "head_only, 20 epochs": (dict(training_mode="head_only"), dict(epochs=19)),
}, {
    "15 epochs, learning_rate=3e-4": (dict(learning_rate=3e-4), dict(epochs=15)),
    "head_dropout_prob=0.2": (dict(head_dropout_prob=0.2), {}),
    "head_lr=1e-3": ({}, dict(head_lr=1e-3)),
    "weight_decay=0": (dict(weight_decay=0.), {}),
}]

def catalog(name):
    "A data set's catalogue and the name of its label"
    df = pd.read_csv(DATA/name/"labels.csv", dtype={"id_str": str})
    if "id_str" not in df: df = df.assign(id_str=df.index.astype(str))
    df = read_catalog(df, image_dir=DATA/name)
    if name=="rings": return df,"ring"
    if name=="mirabest": return df,"label"
    df = df[df.class_name!="dont_know"].reset_index(drop=True)
    return df.assign(morphology=df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral")),"morphology"

def split(name, seed):
    "Train and valid, test, label"
    df,label = catalog(name)
    df = split_catalog(df, label, valid=0.1, test=0.2, seed=seed)
    if name=="gz1":
        def some(d, n): return train_test_split(d.index, train_size=n, stratify=d[label], random_state=seed)[0]
        few = [some(d, GZ1[s]) for s,d in df.groupby("split") if s in GZ1]
        df = df[(df.split=="test") | df.index.isin(np.concatenate(few))]
    return df[df.split!="test"].reset_index(drop=True),df[df.split=="test"].reset_index(drop=True),label

def run(name, encoder, params, fit, seed):
    use,test,label = split(name, seed)
    dls = GalaxyDataLoaders.from_catalog(use, label, size=SIZE.get((name, encoder), 64), batch_size=32, progress=False)
    learn = galaxy_learner(dls, ENCODERS[encoder], seed=seed, **params)
    fit = {"epochs": 5, **fit}
    with learn.no_bar(), learn.no_logging():
        if fit.pop("flat_cos", False):
            learn.fine_tune(0, freeze_epochs=1)
            learn.fit_flat_cos(fit["epochs"], learn.lr)
        else: learn.fine_tune(**fit)
    preds = predict_catalog(learn, test, progress=False)
    s = score_predictions(preds, test, dls.task)
    p = preds[dls.task.columns[1:]].to_numpy(float)[np.arange(len(test)), np.asarray(dls.task.encode(test))]
    return dict(
        n_train=int((use.split=="train").sum()),
        n_test=s["n"],
        accuracy=s["accuracy"],
        balanced_accuracy=s["balanced_accuracy"],
        roc_auc=s["roc_auc"],
        log_loss=float(-np.log(np.maximum(p, 1e-12)).mean()),
        train_loss=learn.history[-1]["train_loss"],
        params=learn.params | {k: v for k,v in fit.items()})

def jobs():
    "(data set, encoder, setting, seed); what comes first is a balanced part of the whole"
    first = [(0, 0, ENCODERS), (0, 1, ["lite0", "convnext"]), (1, 0, ["convnext", "lite0"]), (0, 1, ["lite1"]),
             (1, 0, ["lite1"]), (2, 0, ["convnext", "lite0"])]
    for tier,seed,encoders in first + [(t, s, ENCODERS) for s in range(max(SEEDS.values())) for t in range(len(TIERS))]:
        for encoder in encoders:
            for name in (n for n in SEEDS if seed<SEEDS[n]):
                for setting in TIERS[tier]: yield name,encoder,setting,seed

def done():
    rows = [json.loads(l) for l in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(r["dataset"], r["encoder"], r["setting"], r["seed"]): r for r in rows}

def work(args):
    settings = {k: v for t in TIERS for k,v in t.items()}
    k,n = map(int, args.worker.split("/"))
    end = time.time() + 3600*args.hours
    only = set(args.only)
    kinds = (SEEDS, ENCODERS, settings, [f"seed{i}" for i in range(max(SEEDS.values()))])
    if unknown := only.difference(*kinds): raise SystemExit(f"--only: there is no {', '.join(sorted(unknown))}")
    for i,(name,encoder,setting,seed) in enumerate(jobs()):
        if time.time()>end: break
        this = zip(kinds, (name, encoder, setting, f"seed{seed}"))
        left_out = any(set(kind) & only and v not in only for kind,v in this)
        if i%n!=k or left_out or (name,encoder,setting,seed) in done(): continue
        start = time.time()
        row = dict(dataset=name, encoder=encoder, setting=setting, seed=seed, size=SIZE.get((name, encoder), 64))
        row |= run(name, encoder, *settings[setting], seed)
        row |= dict(seconds=round(time.time()-start, 1), threads=torch.get_num_threads(),
                    date=f"{pd.Timestamp.now():%Y-%m-%d}",
                    torch=torch.__version__, timm=timm.__version__, fastai=fastai.__version__)
        with open(RESULTS, "a") as f: f.write(json.dumps(row)+"\n")          # one short line: whole or not at all
        print(f"{name:9} {encoder:9} {setting:30} {seed}  AUC {row['roc_auc']:.3f}  loss {row['log_loss']:.3f}  "
              f"{row['seconds']:.0f} s", flush=True)

METRICS = {"roc_auc": "ROC AUC", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}

def print_table(head, body):
    "A table of Markdown"
    line = lambda cells: "| "+" | ".join(map(str, cells))+" |"
    print(line(head)+"\n|"+" --- |"*len(head)+"\n"+"\n".join(map(line, body))+"\n")

def mean(v):
    "A mean, and its standard error where there are several"
    return f"{v.mean():+.3f} ± {v.std()/len(v)**.5:.3f}" if len(v)>1 else f"{v.mean():+.3f}"

def table_of_defaults(df, cells):
    versions = ", ".join(f"{p} {' '.join(sorted(df[p].unique()))}" for p in ("torch", "timm", "fastai"))
    print(f"{len(df)} runs, {df.date.min()} to {df.date.max()}; {versions}\n\nThe default, mean over the seeds:\n")
    rows = []
    for d,e in cells:
        r = df[(df.dataset==d) & (df.encoder==e) & (df.setting=="default")]
        rows.append((d, e, r["size"].iat[0], r.n_train.iat[0], r.n_test.iat[0], len(r),
                     *(f"{r[m].mean():.3f}" for m in METRICS)))
    print_table(["data", "encoder", "pixels", "trained on", "tested on", "seeds", "ROC AUC", "balanced accuracy",
                 "log loss"], rows)

def table_of_settings(paired, settings):
    print("Difference to the default, all pairs of runs; how often the AUC was higher:\n")
    rows = []
    for s in settings:
        p = paired[paired.setting==s]
        rows.append((f"`{s}`", len(p), *(mean(p[m]) for m in METRICS), f"{(p.roc_auc>0).sum()} of {len(p)}"))
    print_table(["changed", "pairs", *METRICS.values(), "AUC higher"], rows)

def table_of_groups(paired, settings, groups, m):
    print(f"Difference in {METRICS[m]} by data set, and by encoder (pairs):\n")
    def cell(s, column, value):
        v = paired[(paired.setting==s) & (paired[column]==value)][m]
        return f"{mean(v)} ({len(v)})" if len(v) else ""
    rows = [(f"`{s}`", *(cell(s, column, value) for column,value in groups)) for s in settings]
    print_table(["changed", *(value for _,value in groups)], rows)

def table():
    """Differences to the default with the same data set, encoder and seed: their mean, and its standard error over the
    runs"""
    df = pd.DataFrame(list(done().values()))
    key = ["dataset", "encoder", "seed"]
    default = df[df.setting=="default"]
    cells = [(d, e) for d in SEEDS for e in ENCODERS if ((default.dataset==d) & (default.encoder==e)).any()]
    paired = df.merge(default[[*key, *METRICS]], on=key, suffixes=("", "_default"))
    for m in METRICS: paired[m] -= paired[m+"_default"]
    settings = [s for t in TIERS for s in t if s!="default" and (paired.setting==s).any()]
    groups = [("dataset", n) for n in SEEDS if any(d==n for d,_ in cells)]
    groups += [("encoder", e) for e in ENCODERS if any(c==e for _,c in cells)]
    table_of_defaults(df, cells)
    table_of_settings(paired, settings)
    for m in ("roc_auc", "log_loss"): table_of_groups(paired, settings, groups, m)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hours", type=float, default=24, help="no run starts after this")
    p.add_argument("--worker", default="0/1", help="i/n: this one of n workers")
    p.add_argument("--only", nargs="+", default=[],
                   help="runs with these data sets, encoders, settings, seed0, seed1, ...")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    RESULTS.parent.mkdir(exist_ok=True)
    if args.table: table()
    else: work(args)

if __name__=="__main__": main()
